package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/internal/durable"
)

// patience bounds one answer of the supervisor. It waits for the guard, a disk
// to be mounted, or a launch that is just being written down.
const patience = time.Minute

// program is the runtime with its settings.
type program struct{ settings.Settings }

// Main is the whole runtime: args are the program's without its name. It
// returns only when runc is not to run, the exit status.
func Main(args []string) int {
	c, err := parse(args)
	if err == nil {
		err = run(c)
	}
	fmt.Fprintf(os.Stderr, "clawbox-runc: %v\n", err)
	if c != nil {
		c.report(err)
	}
	return 1
}

// report writes the error where containerd reads runc's.
func (c *call) report(err error) {
	f, oerr := os.OpenFile(c.global["log"], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if oerr != nil {
		return // it is on standard error
	}
	defer f.Close()
	json.NewEncoder(f).Encode(map[string]string{"level": "error", "msg": "clawbox: " + err.Error(), "time": time.Now().UTC().Format(time.RFC3339)})
}

func run(c *call) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	set, err := settings.Of(self)
	if err != nil {
		return err
	}
	s := program{set}
	if do, ok := verbs[c.verb]; ok {
		return do(s, c)
	}
	return s.become(c.args)
}

// verbs are those that make a container, or run something in one. The others
// look at it or end it.
var verbs = map[string]func(program, *call) error{
	"create": create, "run": refuseBundle, "restore": refuseBundle,
	"start": start, "exec": refuseRunning, "checkpoint": refuseRunning, "update": refuseRunning, "kill": kill,
}

// become executes runc. files become descriptors from 3 on.
func (s program) become(args []string, files ...*os.File) error {
	var high []int
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 64)
		if err != nil {
			return err
		}
		high = append(high, fd)
	}
	// From here on Go's own descriptors may be overwritten: execve comes next.
	for i, fd := range high {
		if err := unix.Dup3(fd, 3+i, 0); err != nil {
			return err
		}
	}
	err := unix.Exec(s.Runc, append([]string{"runc"}, args...), environ())
	return fmt.Errorf("execute %s: %w", s.Runc, err)
}

// environ is the process's, without what would have runc count descriptors
// that are not there (sd_listen_fds(3)).
func environ() (out []string) {
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "LISTEN_") {
			out = append(out, e)
		}
	}
	return out
}

// ask sends one request.
func (s program) ask(method string, in, out any, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return fmt.Errorf("no agent runs without its supervisor: %w; does 'clawbox serve' run?", err)
	}
	f, err := nc.(*net.UnixConn).File()
	nc.Close()
	if err != nil {
		return err
	}
	c, err := service.NewConn(f, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, in, out, files...)
}

// config is as much as is read here of OCI's config.json.
type config struct {
	Annotations map[string]string `json:"annotations"`
	Root        struct {
		Path string `json:"path"`
	} `json:"root"`
	Linux struct {
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
	} `json:"linux"`
}

// maxConfig bounds config.json and runc's state.json, in bytes.
const maxConfig = 4 << 20

// readBounded reads a file that has at most maxConfig bytes.
func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("%s has more than %d bytes", name, maxConfig)
	}
	return b, err
}

func (c *call) readConfig() (cfg config, b []byte, err error) {
	if b, err = readBounded(filepath.Join(c.bundle(), "config.json")); err != nil {
		return cfg, nil, err
	}
	return cfg, b, json.Unmarshal(b, &cfg)
}

// create asks for a container, and has runc make the one that is granted.
func create(s program, c *call) error {
	cfg, b, err := c.readConfig()
	if err != nil {
		return err
	}
	if cfg.Annotations[NamespaceOf] != s.Namespace {
		return s.become(c.args)
	}
	if _, ok := c.local["preserve-fds"]; ok {
		return errors.New("--preserve-fds is given; an agent's container gets descriptors from the supervisor alone")
	}
	q := &Create{ID: c.id, Config: b}
	var theirs []*os.File
	if cfg.Annotations[KindOf] == Sandbox {
		q.Net, err = cfg.network()
	} else {
		theirs, err = q.channels(c.rootfs(cfg))
	}
	if err != nil {
		return err
	}
	var got created
	if err := s.ask(methodCreate, q, &got, q.files()...); err != nil {
		return err
	}
	q.Close()
	if err := durable.WriteFile(filepath.Join(c.bundle(), "config.json"), got.Config, 0o600); err != nil {
		return err
	}
	if len(theirs) == 0 {
		return s.become(c.args)
	}
	return s.become(c.preserving(len(theirs)), theirs...)
}

func (c *call) rootfs(cfg config) string {
	if filepath.IsAbs(cfg.Root.Path) {
		return cfg.Root.Path
	}
	return filepath.Join(c.bundle(), cfg.Root.Path)
}

// network opens the pod's network namespace; nil where it has none of its own.
func (cfg config) network() (*os.File, error) {
	for _, n := range cfg.Linux.Namespaces {
		if n.Type == "network" && n.Path != "" {
			return os.Open(n.Path)
		}
	}
	return nil, nil
}

// channels is how many descriptors the launcher gets: control, Spec, output,
// errors, in this order from 3 on.
const channels = 4

// channels makes them and keeps the supervisor's ends, with the root.
func (q *Create) channels(rootfs string) (theirs []*os.File, err error) {
	if q.Root, err = os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	for _, p := range []**os.File{&q.Control, &q.Spec} {
		var t *os.File
		if *p, t, err = service.Pair(); err != nil {
			return nil, err
		}
		// The launcher reads without Go's poller.
		if err := unix.SetNonblock(int(t.Fd()), false); err != nil {
			return nil, err
		}
		theirs = append(theirs, t)
	}
	for _, p := range []**os.File{&q.Stdout, &q.Stderr} {
		var t *os.File
		if *p, t, err = os.Pipe(); err != nil {
			return nil, err
		}
		theirs = append(theirs, t)
	}
	return theirs, nil
}

// state is as much as is read here of runc's state.json.
type state struct {
	PID    int `json:"init_process_pid"`
	Config struct {
		Labels []string `json:"labels"` // annotations, as NAME=value
	} `json:"config"`
}

func (c *call) state() (st state, err error) {
	root := c.global["root"]
	if root == "" {
		root = "/run/runc"
	}
	if c.id == "" || strings.ContainsAny(c.id, "/\x00") || c.id == ".." || c.id == "." {
		return st, fmt.Errorf("container id %q; want the name of a folder in %s", c.id, root)
	}
	b, err := readBounded(filepath.Join(root, c.id, "state.json"))
	if err != nil {
		return st, fmt.Errorf("container %s does not exist: %w", c.id, err) // runc's words: containerd knows them
	}
	return st, json.Unmarshal(b, &st)
}

// ours says whether a container is an agent's.
func (st state) ours(s program) bool {
	for _, l := range st.Config.Labels {
		if l == NamespaceOf+"="+s.Namespace {
			return true
		}
	}
	return false
}

// start asks whether a container's first process may run.
func start(s program, c *call) error {
	st, err := c.state()
	if err != nil {
		return err
	}
	if !st.ours(s) {
		return s.become(c.args)
	}
	fd, err := unix.PidfdOpen(st.PID, 0)
	if err != nil {
		return fmt.Errorf("first process of container %s: %w", c.id, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if err := s.ask(methodStart, c.id, nil, f); err != nil {
		return err
	}
	return s.become(c.args)
}

// kill tells the supervisor of the signal that asks a container to end; the
// launcher, which is its first process, takes none.
func kill(s program, c *call) error {
	if sig := strings.TrimPrefix(strings.Join(c.rest, ""), "SIG"); sig == "" || sig == "TERM" || sig == strconv.Itoa(int(unix.SIGTERM)) {
		if st, err := c.state(); err == nil && st.ours(s) {
			if err := s.ask(methodKill, c.id, nil); err != nil {
				fmt.Fprintf(os.Stderr, "clawbox-runc: %v\n", err) // SIGKILL follows
			}
		}
	}
	return s.become(c.args)
}

// refuseBundle keeps an agent's container from being made in another way.
func refuseBundle(s program, c *call) error {
	cfg, _, err := c.readConfig()
	if err != nil {
		return err
	}
	if cfg.Annotations[NamespaceOf] != s.Namespace {
		return s.become(c.args)
	}
	return fmt.Errorf("%s is refused for an agent's container; 'clawbox agent launch' starts one", c.verb)
}

// refuseRunning keeps others from running something in an agent's container,
// and from lifting its budgets.
func refuseRunning(s program, c *call) error {
	st, err := c.state()
	if err != nil {
		return err
	}
	if !st.ours(s) {
		return s.become(c.args)
	}
	return fmt.Errorf("%s is refused for an agent's container, which its policy alone rules; 'clawbox agent connect' runs a program inside", c.verb)
}
