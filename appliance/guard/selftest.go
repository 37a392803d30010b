package guard

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// selfTestDeadline is generous: a healthy host needs milliseconds.
var selfTestDeadline = 10 * time.Second

// Probes open these, to see that refusals and opened files are reported.
const (
	missingName = "/clawbox-guard-self-test/does-not-exist"
	openedName  = "/proc" // which a guard may open that is confined itself
)

// selfTest provokes what the guard is for. Programs that load and attach
// without enforcing anything have been seen; only a denial proves.
func (g *Guard) selfTest() error {
	dir, err := g.selfTestCgroup()
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	defer removeCgroup(dir)
	ps := probes{dir: dir}
	// Not "defer ps.close()", which would close what ps holds by now: nothing.
	// Then the collector closes a probe between the making of its name and its
	// start, and the name is another file's.
	defer func() { ps.close() }()
	for _, p := range []struct {
		f    **os.File
		path string
	}{{&ps.unlisted, missingName}, {&ps.refused, missingName}, {&ps.opens, openedName}} {
		if *p.f, err = place(probe(p.path, unix.O_RDONLY)); err != nil {
			return err
		}
	}
	w, err := g.watchProbes(ps)
	if err != nil {
		return err
	}
	err = g.prove(ps)
	_, end := w.detach()
	return errors.Join(err, end)
}

// probes are programs that do one thing each, to be run in the cgroup at dir.
type probes struct {
	dir                      string
	unlisted, refused, opens *os.File
}

func (ps probes) close() {
	for _, f := range []*os.File{ps.unlisted, ps.refused, ps.opens} {
		f.Close() // nil is refused, no more
	}
}

func (g *Guard) watchProbes(ps probes) (*Watch, error) {
	id, err := CgroupID(ps.dir)
	if err != nil {
		return nil, err
	}
	s := Scope{ID: testScope, CgroupID: id, Cgroup: ps.dir, AuditENOENT: true, AuditOpens: true}
	for _, f := range []*os.File{ps.refused, ps.opens} {
		n, err := inodeOf(int(f.Fd()), "/proc/self/mountinfo")
		if err != nil {
			return nil, err
		}
		s.Exec = append(s.Exec, n)
	}
	return g.Watch(s)
}

// prove runs the probes and waits for their events.
func (g *Guard) prove(ps probes) error {
	err := g.proveUnlisted(ps)
	if err != nil {
		return err
	}
	err = g.proveListed(ps.dir, ps.refused, "refused openat of it", func(e Event) bool {
		return e.Kind == Refused && e.Path == missingName && e.Errno == unix.ENOENT
	})
	if err != nil {
		return err
	}
	root, err := Lookup(os.Getpid(), openedName)
	if err != nil {
		return err
	}
	return g.proveListed(ps.dir, ps.opens, "file that it opened", func(e Event) bool {
		return e.Kind == Opened && e.Inode == root && e.Access == ReadOnly && (g.hooks == nil) == (e.Syscall != "")
	})
}

// proveUnlisted starts a program that must not run: it is refused where the
// tier has hooks, and killed where it has none. Hooks that do not enforce are
// found out by the kill.
func (g *Guard) proveUnlisted(ps probes) error {
	st, pid, err := runIn(ps.dir, ps.unlisted)
	if g.hooks != nil {
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("an unlisted program was not refused: got %v, wait status %#x, want EPERM%s", err, uint32(st), g.lsms())
		}
		return g.await(wanted{"refusal of an unlisted program", func(e Event) bool { return e.Kind == Exec && e.Denied && e.Errno == unix.EPERM }})
	}
	if err != nil {
		return fmt.Errorf("start an unlisted program: %w", err)
	}
	if !st.Signaled() || st.Signal() != unix.SIGKILL {
		return fmt.Errorf("an unlisted program was not killed: wait status %#x", uint32(st))
	}
	return g.await(wanted{"kill of an unlisted program", func(e Event) bool { return e.Kind == Exec && e.PID == pid && e.Killed }})
}

// lsms explains a T1 that attaches and enforces nothing.
func (g *Guard) lsms() string {
	b, err := os.ReadFile("/sys/kernel/security/lsm")
	if g.tier != TierLSM || err != nil || slices.Contains(strings.Split(string(b), ","), "bpf") {
		return ""
	}
	return fmt.Sprintf(" (the kernel was started with lsm=%s, and bpf is not in it)", b)
}

// proveListed runs a listed probe that must run to its end and cause an event.
func (g *Guard) proveListed(dir string, f *os.File, what string, fits func(Event) bool) error {
	st, pid, err := runIn(dir, f)
	if err != nil {
		return fmt.Errorf("start a listed program: %w", err)
	}
	if st.ExitStatus() != probeStatus {
		return fmt.Errorf("a listed program did not run: wait status %#x, want exit status %d", uint32(st), probeStatus)
	}
	return g.await(
		wanted{"start of a listed program", func(e Event) bool { return e.Kind == Exec && e.PID == pid && !e.Killed }},
		wanted{what, func(e Event) bool { return e.PID == pid && fits(e) }})
}

// wanted is an event that must come.
type wanted struct {
	what string
	fits func(Event) bool
}

// await takes events until all that are wanted have come, in any order.
// Nobody else reads the stream yet.
func (g *Guard) await(ws ...wanted) error {
	late := time.After(selfTestDeadline)
	for len(ws) > 0 {
		select {
		case e := <-g.early.tests:
			ws = slices.DeleteFunc(ws, func(w wanted) bool { return w.fits(e) })
		case <-late:
			return fmt.Errorf("no event tells of the %s", ws[0].what)
		}
	}
	return nil
}

// runIn executes f as a child that is born in the cgroup at dir.
func runIn(dir string, f *os.File) (syscall.WaitStatus, int, error) {
	cg, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer cg.Close()
	c := exec.Cmd{
		Path:        fmt.Sprintf("/proc/self/fd/%d", f.Fd()),
		Args:        []string{"clawbox-probe"},
		SysProcAttr: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())},
	}
	err = c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, 0, err
	}
	return c.ProcessState.Sys().(syscall.WaitStatus), c.ProcessState.Pid(), nil
}

// selfTestCgroup makes a cgroup below our own, where a service manager has
// given us a place, or else at the top.
func (g *Guard) selfTestCgroup() (string, error) {
	var errs []error
	for _, parent := range []string{cmp.Or(g.opt.Cgroup, g.ownCgroup()), g.mount.dir} {
		dir, err := os.MkdirTemp(parent, "clawbox-self-test-")
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func (g *Guard) ownCgroup() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(g.mount.dir, strings.TrimPrefix(own, strings.TrimSuffix(g.mount.root, "/")))
		}
	}
	return g.mount.dir
}

// removeCgroup waits for the kernel to forget the last process.
func removeCgroup(dir string) {
	for range 100 {
		if err := os.Remove(dir); !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
