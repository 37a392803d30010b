// Package k3shost runs real K3s clusters on this machine, without a virtual
// machine, for tests: each node has mount, network, cgroup, pid, ipc and uts
// namespaces of its own, a root folder that shows of the host /usr and /dev,
// and no route to anywhere but the other nodes.
//
//	lan, err := k3shost.NewLAN()                     // a bridge in a namespace of its own
//	defer lan.Close()
//	m, err := k3shost.Boot(ctx, k3shost.Options{Name: "box", Dir: dir, LAN: lan, Artifacts: "dist/k3s"})
//	defer m.Halt()                                   // the power cut
//	l, err := m.Listen("tcp", "127.0.0.1:5000")      // a socket inside, served from here
//	k, err := m.StartK3s(ctx, k3shost.K3s{Version: "1.35", Images: k3s.SourceImages})
//	err = k.WaitReady(ctx)
//	out, err := k.Kubectl(ctx, manifest, "apply", "-f", "-")
//	err = k.Stop(ctx)                                // containers run on, as in an upgrade
//
// What is written below /etc, /var, /opt, /usr/local and /root lies in Dir and
// is there again after the next Boot. Nothing else stays: no mount, no
// process, no cgroup, no kernel setting. See Halt.
//
// A program that imports this package can become the first process of such
// a machine: its init function takes over when the program's name is ours.
//
// It needs root. It works on cgroup v1 (measured) and v2. Kernel settings that
// are the host's (vm.overcommit_memory, …) are shown to the node as files that
// it may write without any effect, because a test must not change the host.
package k3shost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what machine to boot.
type Options struct {
	Name      string     // host name
	Dir       string     // what survives
	LAN       *LAN       // its only network
	Addr      netip.Addr // on the LAN; the zero Addr takes the next free one
	Artifacts string     // what `make k3s` built; shown read-only at /k3s
	// Binds are further folders or files of this machine, by the path at which
	// they are shown, read-only.
	Binds map[string]string
	// Units has the machine obey a systemctl, and start what is enabled when it
	// boots: see units. Those in Beside run as BesideCommand does.
	Units  bool
	Beside []string
}

// Machine is a booted machine.
type Machine struct {
	Options
	init    *exec.Cmd
	wait    chan error
	cgroups []group
	phases  []Phase
	units   *units // nil: nobody looks after services
}

// Phase is how long something took, by the wall clock.
type Phase struct {
	Name string
	Took time.Duration
}

// Phases lists what took time, in order.
func (m *Machine) Phases() []Phase { return m.phases }

// phase runs f and writes down how long it took.
func (m *Machine) phase(name string, f func() error) error {
	start := time.Now()
	err := f()
	m.phases = append(m.phases, Phase{name, time.Since(start)})
	return err
}

// setup is what the first process is told.
type setup struct {
	Name   string
	Dir    string
	Groups []group
	Binds  map[string]string
}

// Boot starts a machine. It ends when Halt is called or this program ends.
func Boot(ctx context.Context, o Options) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("k3shost: namespaces and cgroups need root")
	}
	if o.Name == "" || o.Dir == "" || o.LAN == nil {
		return nil, errors.New("k3shost: Name, Dir and LAN: want all three")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	m := &Machine{Options: o, wait: make(chan error, 1)}
	err = m.phase("boot "+o.Name, func() error { return m.boot(ctx) })
	if err == nil && o.Units {
		err = m.units.boot(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("k3shost: boot %s: %w", o.Name, errors.Join(err, m.Halt()))
	}
	return m, nil
}

func (m *Machine) boot(ctx context.Context) error {
	if err := makeFolders(m.Dir, m.Name); err != nil {
		return err
	}
	var err error
	if m.cgroups, err = makeGroups(m.Name); err != nil {
		return err
	}
	if m.Units {
		if m.units, err = openUnits(m); err != nil {
			return err
		}
	}
	heard, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer tell.Close()
	hear, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hear.Close()
	var errs bytes.Buffer
	m.init = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{initName}, Env: []string{"PATH=" + path, "GOMAXPROCS=1"},
		ExtraFiles: []*os.File{heard, ready}, Stderr: &errs,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Setsid:     true, Pdeathsig: syscall.SIGKILL,
		},
	}
	err = m.init.Start()
	heard.Close()
	ready.Close()
	if err != nil {
		m.init = nil
		return err
	}
	go func() { m.wait <- m.init.Wait() }()
	if err := m.prepare(ctx, tell); err != nil {
		return err
	}
	if b, err := io.ReadAll(hear); err != nil || string(b) != "ready" {
		return fmt.Errorf("the first process said %q (%v): %s", b, err, errs.String())
	}
	return nil
}

// prepare gives the waiting first process its cgroups and its network, and lets it go.
func (m *Machine) prepare(ctx context.Context, tell io.WriteCloser) error {
	for _, g := range m.cgroups {
		if err := g.add(m.init.Process.Pid); err != nil {
			return err
		}
	}
	addr, err := m.LAN.attach(m.init.Process.Pid, m.Addr)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	m.Addr = addr
	s := setup{Name: m.Name, Dir: m.Dir, Groups: m.cgroups, Binds: map[string]string{}}
	for in, out := range m.Binds {
		if s.Binds[in], err = filepath.Abs(out); err != nil {
			return err
		}
	}
	if m.Artifacts != "" {
		if s.Binds["/k3s"], err = filepath.Abs(m.Artifacts); err != nil {
			return err
		}
	}
	if m.Units {
		if s.Binds[ctlPath], err = os.Executable(); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(tell).Encode(s); err != nil {
		return err
	}
	return errors.Join(tell.Close(), ctx.Err())
}

// Halt ends every process of the machine at once, as a power cut does, and
// removes its cgroups. Its mounts and interfaces go with its namespaces. A
// second Halt does nothing.
func (m *Machine) Halt() error {
	if m.units != nil {
		m.units.halt()
		m.units = nil
	}
	if m.init != nil {
		_ = m.init.Process.Kill() // it may be dead
		<-m.wait
		m.init = nil
	}
	var errs []error
	for _, g := range m.cgroups {
		g.kill()
		errs = append(errs, g.remove())
	}
	m.cgroups = nil
	return errors.Join(errs...)
}

// Pid is the machine's first process, as seen from here: its namespaces are in
// /proc/Pid/ns, its files below /proc/Pid/root.
func (m *Machine) Pid() int { return m.init.Process.Pid }

// Path is where a file of the machine lies on this one. It must be in one of
// the folders that survive.
func (m *Machine) Path(name string) string { return filepath.Join(m.Dir, name) }

// WriteFile writes a file of the machine, and the folders above it.
func (m *Machine) WriteFile(name string, mode os.FileMode, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(m.Path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.Path(name), data, mode)
}

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command runs a program inside, as root, in the machine's cgroups, with a clean environment to which Env
// may be added. It is killed when ctx ends; SIGTERM, SIGINT and SIGHUP sent to it reach the program.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return Command(ctx, m.Dir, name, args...)
}

// Command is Machine.Command for the machine that another program runs in dir.
func Command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{joinName, dir, name}, args...)
	cmd.Env = []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second // for what it left behind with its files open
	return cmd
}

// Run runs a command inside and returns what it printed on stdout; what it
// printed on stderr is in the error.
func (m *Machine) Run(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	return output(m.Command(ctx, name, args...), stdin)
}

func output(cmd *exec.Cmd, stdin []byte) (string, error) {
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[2:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Listen opens a socket inside the machine's network, served from here.
func (m *Machine) Listen(network, addr string) (net.Listener, error) {
	var l net.Listener
	err := inNetNS(fmt.Sprintf("/proc/%d/ns/net", m.Pid()), func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// Dial connects from inside the machine's network.
func (m *Machine) Dial(network, addr string) (net.Conn, error) {
	var c net.Conn
	err := inNetNS(fmt.Sprintf("/proc/%d/ns/net", m.Pid()), func() (err error) {
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return c, err
}

// inNetNS runs f on a thread in that network namespace. A thread that can't
// come back is not used again.
func inNetNS(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			back, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer back.Close()
			to, err := os.Open(ns)
			if err != nil {
				return err
			}
			defer to.Close()
			if err := unix.Setns(int(to.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			err = f()
			if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e == nil {
				runtime.UnlockOSThread()
			}
			return err
		}()
	}()
	return <-done
}
