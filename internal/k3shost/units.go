package k3shost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// units stands in for systemd on a machine with Options.Units: it runs the
// services whose unit files an installer has placed there, and a program
// `systemctl` inside asks it to. Of units it knows Type exec and notify,
// ExecStart, Environment, Restart, RestartSec and RuntimeDirectory; of KillMode
// the main process. Of systemctl the verbs that an installer of clawbox's needs.
type units struct {
	m *Machine
	l *net.UnixListener

	mu     sync.Mutex
	halted bool
	all    map[string]*unit
}

// unit is one service.
type unit struct {
	name   string
	wanted bool          // start it again when it ends
	cmd    *exec.Cmd     // nil: it does not run
	done   chan struct{} // closed when cmd has ended
	ready  chan struct{} // closed once it is ready, or has ended
}

// The names by which the machine's programs reach it.
const (
	ctlName   = "systemctl"
	ctlPath   = "/usr/local/sbin/systemctl"
	ctlSocket = "/var/systemctl.sock"
	unitDir   = "/etc/systemd/system"
)

// ctlAnswer is how a systemctl ended.
type ctlAnswer struct {
	Status int
	Out    string
	Err    string
}

// openUnits listens before the machine is there.
func openUnits(m *Machine) (*units, error) {
	name := m.Path(ctlSocket)
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name})
	if err != nil {
		return nil, err
	}
	u := &units{m: m, l: l, all: map[string]*unit{}}
	go u.serve()
	return u, nil
}

// boot starts what is enabled, in the order of names.
func (u *units) boot(ctx context.Context) error {
	if _, err := u.m.Run(ctx, nil, "mkdir", "-p", "/run/systemd/system"); err != nil {
		return err
	}
	found, err := filepath.Glob(u.m.Path(unitDir + "/multi-user.target.wants/*.service"))
	if err != nil {
		return err
	}
	for _, f := range found {
		if err := u.start(filepath.Base(f), false); err != nil {
			return err
		}
	}
	return nil
}

// halt ends what is not in the machine's pid namespace, as the power cut that it is.
func (u *units) halt() {
	u.l.Close()
	u.mu.Lock()
	u.halted = true
	var running []*unit
	for _, x := range u.all {
		x.wanted = false
		if x.cmd != nil {
			running = append(running, x)
		}
	}
	u.mu.Unlock()
	for _, x := range running {
		_ = x.cmd.Process.Kill() // it may have ended
		<-x.done
	}
}

func (u *units) serve() {
	for {
		c, err := u.l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var args []string
			if err := json.NewDecoder(c).Decode(&args); err != nil {
				return
			}
			out, err := u.ctl(args)
			a := ctlAnswer{Out: out}
			if err != nil {
				a.Status, a.Err = 1, err.Error()
			}
			_ = json.NewEncoder(c).Encode(a) // who hung up needs no answer
		}()
	}
}

// ctl is systemctl. It says what that prints.
func (u *units) ctl(args []string) (string, error) {
	block := true
	args = slices.DeleteFunc(args, func(a string) bool {
		block = block && a != "--no-block"
		return strings.HasPrefix(a, "--")
	})
	if len(args) == 1 && args[0] == "daemon-reload" {
		return "", nil // files are read at each start
	}
	if len(args) != 2 {
		return "", fmt.Errorf("systemctl %q: not known here", args)
	}
	switch name := args[1]; args[0] {
	case "reset-failed":
		return "", nil
	case "start":
		return "", u.start(name, block)
	case "stop":
		return "", u.stop(name)
	case "restart":
		return "", errors.Join(u.stop(name), u.start(name, block))
	case "is-active":
		u.mu.Lock()
		defer u.mu.Unlock()
		if x := u.all[name]; x == nil || x.cmd == nil || !closed(x.ready) {
			return "inactive\n", errors.New(name + " does not run")
		}
		return "active\n", nil
	}
	return "", fmt.Errorf("systemctl %q: not known here", args)
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start starts a unit that does not run; with block it returns once it is ready.
func (u *units) start(name string, block bool) error {
	f, err := readUnit(u.m.Path(filepath.Join(unitDir, name)))
	if err != nil {
		return err
	}
	u.mu.Lock()
	x := u.all[name]
	if x == nil {
		x = &unit{name: name}
		u.all[name] = x
	}
	x.wanted = true
	if x.cmd == nil {
		err = u.run(x, f)
	}
	ready, done := x.ready, x.done
	u.mu.Unlock()
	if err != nil || !block {
		return err
	}
	<-ready
	if closed(done) {
		return fmt.Errorf("%s has ended; see %s", name, u.log(name))
	}
	return nil
}

func (u *units) log(name string) string { return u.m.Path("/var/log/" + name + ".log") }

// run starts the program. The lock is held.
func (u *units) run(x *unit, f unitFile) error {
	if u.halted {
		return errors.New("the machine is off")
	}
	ctx := context.Background()
	if d := f.get("RuntimeDirectory"); d != "" {
		if _, err := u.m.Run(ctx, nil, "mkdir", "-p", "/run/"+d); err != nil {
			return err
		}
	}
	args := strings.Fields(f.get("ExecStart"))
	if len(args) == 0 {
		return fmt.Errorf("%s has no ExecStart", x.name)
	}
	cmd := u.m.Command(ctx, args[0], args[1:]...)
	if slices.Contains(u.m.Beside, x.name) {
		cmd = u.m.BesideCommand(ctx, args[0], args[1:]...)
	}
	cmd.Env = append(cmd.Env, f["Environment"]...)
	log, err := os.OpenFile(u.log(x.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	x.ready, x.done = make(chan struct{}), make(chan struct{})
	told, err := u.notify(x, f, cmd)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, told.Close())
	}
	x.cmd = cmd
	ready := sync.OnceFunc(func() { close(x.ready) })
	if f.get("Type") != "notify" {
		ready()
	}
	go hear(told, ready)
	go u.wait(x, f, cmd, func() { told.Close(); ready() })
	return nil
}

// notify gives a unit of Type=notify its socket, see sd_notify(3).
func (u *units) notify(x *unit, f unitFile, cmd *exec.Cmd) (io.ReadCloser, error) {
	if f.get("Type") != "notify" {
		return io.NopCloser(strings.NewReader("")), nil
	}
	name := "/var/notify-" + x.name
	_ = os.Remove(u.m.Path(name)) // of the run before
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+name)
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: u.m.Path(name)})
}

func hear(told io.Reader, ready func()) {
	buf := make([]byte, 4096)
	for {
		n, err := told.Read(buf)
		if strings.Contains(string(buf[:n]), "READY=1") {
			ready()
		}
		if err != nil {
			return
		}
	}
}

// wait sees a unit end, and starts it again where it is to be.
func (u *units) wait(x *unit, f unitFile, cmd *exec.Cmd, ended func()) {
	err := cmd.Wait()
	u.mu.Lock()
	x.cmd = nil
	close(x.done)
	ended()
	again := x.wanted && !u.halted && (f.get("Restart") == "always" || f.get("Restart") == "on-failure" && err != nil)
	u.mu.Unlock()
	if !again {
		return
	}
	pause, _ := strconv.Atoi(strings.TrimSuffix(f.get("RestartSec"), "s"))
	time.Sleep(time.Duration(pause) * time.Second)
	u.mu.Lock()
	defer u.mu.Unlock()
	if x.wanted && x.cmd == nil && !u.halted {
		_ = u.run(x, f) // its log says why not
	}
}

// stop ends a unit's main process.
func (u *units) stop(name string) error {
	u.mu.Lock()
	x := u.all[name]
	if x == nil || x.cmd == nil {
		if x != nil {
			x.wanted = false
		}
		u.mu.Unlock()
		return nil
	}
	x.wanted = false
	p, done := x.cmd.Process, x.done
	u.mu.Unlock()
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-done:
	case <-time.After(90 * time.Second): // DefaultTimeoutStopSec
		_ = p.Kill()
		<-done
	}
	f, err := readUnit(u.m.Path(filepath.Join(unitDir, name)))
	if d := f.get("RuntimeDirectory"); err == nil && d != "" {
		_, err = u.m.Run(context.Background(), nil, "rm", "-rf", "/run/"+d)
	}
	return err
}

// unitFile is what a unit's lines say, without their sections.
type unitFile map[string][]string

func (f unitFile) get(key string) string {
	if v := f[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

func readUnit(path string) (unitFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := unitFile{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			f[k] = append(f[k], v)
		}
	}
	return f, nil
}

// runCtl is the program `systemctl` inside.
func runCtl(args []string) error {
	c, err := net.Dial("unix", ctlSocket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(args); err != nil {
		return err
	}
	var a ctlAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return fmt.Errorf("the machine went down: %w", err)
	}
	if !slices.Contains(args, "--quiet") {
		fmt.Print(a.Out)
	}
	if a.Status == 0 {
		return nil
	}
	fmt.Fprintln(os.Stderr, a.Err)
	return exitStatus(a.Status)
}

// enter is a script that runs the command behind its first argument, a process
// of the machine, in that machine, but in the pid namespace of who runs it.
// /proc has to be that namespace's then, for the command alone.
const enter = `
pid=$1; shift
while IFS=: read -r _ ctl path; do
	case $ctl in
	"") d=/sys/fs/cgroup; [ -d $d/unified ] && d=$d/unified ;;
	name=*) d=/sys/fs/cgroup/${ctl#name=} ;;
	*) d=/sys/fs/cgroup/$ctl ;;
	esac
	echo $$ >$d$path/cgroup.procs
done </proc/$pid/cgroup
exec nsenter -t $pid -m -n -u -i -C unshare -m --propagation unchanged sh -c \
	'mount --make-private /proc && mount -t proc proc /proc && exec "$@"' sh "$@"
`

// BesideCommand is Command for a program that has to be in this machine's own
// pid namespace: the guard's programs know processes by their numbers there, as
// on a real node, where that is the first one.
func (m *Machine) BesideCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", enter, "sh", fmt.Sprint(m.Pid()), name}, args...)...)
	cmd.Env = []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Kill ends a unit's main process at once, as a crash does.
func (m *Machine) Kill(unit string) error {
	m.units.mu.Lock()
	defer m.units.mu.Unlock()
	x := m.units.all[unit]
	if x == nil || x.cmd == nil {
		return fmt.Errorf("k3shost: %s does not run", unit)
	}
	return x.cmd.Process.Kill()
}

// UnitLog is the end of what a unit printed.
func (m *Machine) UnitLog(unit string, lines int) string {
	b, err := os.ReadFile(m.Path("/var/log/" + unit + ".log"))
	if err != nil {
		return err.Error()
	}
	ls := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(ls[max(0, len(ls)-lines):], "\n")
}

// kill ends what is still in the group: what was started beside the machine.
func (g group) kill() {
	_ = filepath.WalkDir(g.Dir, func(p string, _ os.DirEntry, err error) error {
		b, rerr := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil || rerr != nil {
			return nil // it has gone
		}
		for pid := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 0 {
				_ = unix.Kill(n, unix.SIGKILL)
			}
		}
		return nil
	})
}
