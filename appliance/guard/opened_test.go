package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// audit watches dir with opened files reported and the test binary, and what
// lies on devs, listed.
func audit(t testing.TB, g *Guard, dir string, devs ...uint64) *Watch {
	t.Helper()
	w, err := g.Watch(Scope{
		ID: filepath.Base(dir), CgroupID: must(CgroupID(dir)), AuditOpens: true, ExecDevices: devs,
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// openings are the ways to open a file; each makes one descriptor.
var openings = []struct {
	name   string
	open   func(dir string) (int, error)
	path   string // as it is given, below dir
	file   string // what it leads to
	access Access
}{
	{"openat", func(d string) (int, error) { return unix.Open(d+"/plain", unix.O_RDONLY, 0) }, "/plain", "plain", ReadOnly},
	{"openat", func(d string) (int, error) { return unix.Open(d+"/link", unix.O_RDWR, 0) }, "/link", "plain", ReadWrite},
	{"openat", func(d string) (int, error) { return unix.Open(d+"/hard", unix.O_WRONLY|unix.O_APPEND, 0) }, "/hard", "hard", WriteOnly},
	{"openat", func(d string) (int, error) { return unix.Open(d+"/new", unix.O_WRONLY|unix.O_CREAT, 0o600) }, "/new", "new", WriteOnly},
	{"openat", func(d string) (int, error) { return unix.Open(d+"/sub", unix.O_DIRECTORY, 0) }, "/sub", "sub", ReadOnly},
	{"openat", func(d string) (int, error) { return unix.Open(d+"/sub/name", unix.O_PATH, 0) }, "/sub/name", "name", PathOnly},
	{"openat2", func(d string) (int, error) {
		return unix.Openat2(unix.AT_FDCWD, d+"/sub/how", &unix.OpenHow{Flags: unix.O_RDONLY})
	}, "/sub/how", "how", ReadOnly},
	{"openat", func(d string) (int, error) {
		return unix.Open(d+"/"+strings.Repeat("./", 2000)+"long", unix.O_RDONLY, 0)
	}, "/" + strings.Repeat("./", 2000) + "long", "long", ReadOnly},
}

func openEveryWay(dir string) error {
	for _, o := range openings {
		if _, err := o.open(dir); err != nil {
			return fmt.Errorf("%s %s: %w", o.name, o.path, err)
		}
	}
	if err := os.Chdir(dir + "/sub"); err != nil {
		return err
	}
	if _, err := unix.Open("../relative", unix.O_RDONLY, 0); err != nil {
		return err
	}
	if _, err := unix.Open(dir+"/missing", unix.O_RDONLY, 0); err != unix.ENOENT {
		return fmt.Errorf("missing: %v", err)
	}
	return openOld(dir)
}

func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := os.Mkdir(dir+"/sub", 0o755)
	for _, n := range []string{"plain", "relative", "long", "old", "sub/name", "sub/how"} {
		err = errors.Join(err, os.WriteFile(dir+"/"+n, nil, 0o600))
	}
	err = errors.Join(err, os.Symlink("plain", dir+"/link"), os.Link(dir+"/plain", dir+"/hard"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestOpened: each way to open a file is reported once, with what it led to,
// and only from the scope that asked.
func TestOpened(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir, cg, other := openDir(t), cgroup(t, ""), cgroup(t, "")
	w := audit(t, g, cg)
	watch(t, g, other)
	if err := helper(t, other, "open", dir).Run(); err != nil {
		t.Fatal(err)
	}
	c := helper(t, cg, "open", dir)
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range append(openings, oldOpenings...) {
		want := must(Lookup(os.Getpid(), dir+o.path))
		path, call := dir+o.path, o.name
		if g.hooks != nil && o.access != PathOnly { // told by the kernel's own path
			path, call = filepath.Join(filepath.Dir(path), o.file), ""
		}
		es := j.all(func(e Event) bool {
			return e.Kind == Opened && e.Path == path && e.Syscall == call && e.File == o.file && e.Access == o.access
		})
		if len(es) != 1 {
			t.Errorf("%s %s: %d events, want 1", o.name, o.path, len(es))
			continue
		}
		if e := es[0]; e.Inode != want || e.File != o.file || e.Access != o.access || e.PID != c.Process.Pid || e.Scope != filepath.Base(cg) || e.Errno != 0 {
			t.Errorf("%s %s: got %+v, want file %s, inode %+v, access %q", o.name, o.path, e, o.file, want, o.access)
		}
	}
	relative := "../relative"
	if g.hooks != nil {
		relative = dir + "/relative"
	}
	es := j.all(func(e Event) bool { return e.Kind == Opened && e.Path == relative })
	if len(es) != 1 || es[0].File != "relative" || es[0].Inode != must(Lookup(os.Getpid(), dir+"/relative")) {
		t.Errorf("relative: got %+v", es)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Opened && e.Path == dir+"/missing" }); len(es) > 0 {
		t.Errorf("what was not opened is reported: %+v", es)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Opened && e.Scope != filepath.Base(cg) }); len(es) > 0 {
		t.Errorf("another scope reports opened files: %+v", es)
	}
	if n := g.Lost(); n != 0 {
		t.Errorf("lost %d events", n)
	}
}

// openLoop opens a file many times from several threads, and counts in shared
// memory each time that it holds a descriptor.
func openLoop(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	held, err := counter(args[1])
	if err != nil {
		return err
	}
	const threads = 4
	var wg sync.WaitGroup
	errs := make([]error, threads)
	for i := range threads {
		wg.Go(func() {
			for range n / threads {
				fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
				if err != nil {
					errs[i] = err
					return
				}
				held.Add(1)
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// counter maps a number that outlives whoever counts.
func counter(name string) (*atomic.Int64, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*atomic.Int64)(unsafe.Pointer(&b[0])), nil
}

// loop runs openLoop in the cgroup, and tells how many descriptors it held.
func loop(t testing.TB, cg, name string, n int) (held int, err error) {
	t.Helper()
	count := filepath.Join(t.TempDir(), "count")
	err = helper(t, cg, "loop", name, count, strconv.Itoa(n)).Run()
	b, rerr := os.ReadFile(count)
	if rerr != nil {
		t.Fatal(rerr)
	}
	return int(binary.NativeEndian.Uint64(b)), err
}

// TestOpenLoop: one event for each open, or whoever opened is dead and has not
// had the descriptor.
func TestOpenLoop(t *testing.T) {
	const n = 20000
	size := openRing
	defer func() { openRing = size }()
	for _, tt := range []struct {
		name   string
		ring   uint32
		deaf   bool // nobody receives while it runs
		killed bool
	}{{"received", size, false, false}, {"gathered", size, true, false}, {"no room", uint32(os.Getpagesize()) * 16, true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			openRing = tt.ring
			if tt.killed {
				noBrakes(t)
			}
			g := load(t)
			cg, name := cgroup(t, ""), t.TempDir()+"/file"
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			w := audit(t, g, cg)
			j := new(journal)
			if !tt.deaf {
				j = follow(g)
			}
			held, err := loop(t, cg, name, n)
			if tt.deaf {
				j = follow(g)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			es := len(j.all(func(e Event) bool { return e.Kind == Opened && e.Path == name }))
			t.Logf("%d descriptors, %d events, %d lost, %v", held, es, g.Lost(), err)
			ended := killed(err)
			if g.hooks != nil { // refused, which ends the loop too
				ended = err != nil
			}
			switch {
			case ended != tt.killed || ended != (g.Lost() > 0):
				t.Errorf("ended with %v, %d lost; want an early end %v and lost only then", err, g.Lost(), tt.killed)
			case ended && (held == 0 || held > es):
				t.Errorf("%d descriptors were held, but only %d opens are reported", held, es)
			case !ended && (held != n || es != n || err != nil):
				t.Errorf("%d descriptors were held and %d opens reported (%v), want %d", held, es, err, n)
			}
		})
	}
}

// TestOpenTree: find, and a head for each file, as an agent might.
func TestOpenTree(t *testing.T) {
	const n = 200
	find, err1 := exec.LookPath("find")
	head, err2 := exec.LookPath("head")
	if err := errors.Join(err1, err2); err != nil {
		t.Skipf("not on this machine: %v", err)
	}
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	want := map[Inode]string{}
	for i := range n {
		name := fmt.Sprintf("%s/%d/%d", dir, i%7, i)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
		want[must(Lookup(os.Getpid(), name))] = name
	}
	w := audit(t, g, cg, must(Lookup(os.Getpid(), find)).Dev, must(Lookup(os.Getpid(), head)).Dev)
	c := helper(t, cg, dir, "-type", "f", "-exec", head, "-c1", "{}", ";")
	c.Path, c.Args = find, append([]string{find}, c.Args[1:]...)
	out, err := c.Output()
	if err != nil || len(out) != n {
		t.Fatalf("%v, %d bytes", err, len(out))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range j.all(func(e Event) bool { return e.Kind == Opened && e.Comm == "head" }) {
		if name, ok := want[e.Inode]; ok {
			if e.Path != name || e.File != filepath.Base(name) {
				t.Errorf("%s: got %+v", name, e)
			}
			delete(want, e.Inode)
		}
	}
	all := j.all(func(e Event) bool { return e.Kind == Opened })
	t.Logf("%d files, %d opens, lost %d", n, len(all), g.Lost())
	if len(want) > 0 || g.Lost() > 0 {
		t.Errorf("%d opens have no event: %v; lost %d", len(want), want, g.Lost())
	}
	if dirs := j.all(func(e Event) bool { return e.Kind == Opened && e.Comm == "find" && e.File == "6" }); len(dirs) == 0 {
		t.Error("no event tells of the folders that find opened")
	}
}

// TestUnseen: who sends signals into the dark is told, but not who sends them
// to a thread of its own that has ended.
func TestUnseen(t *testing.T) {
	g := ready(t)
	j := follow(g)
	for name, flags := range map[string]uintptr{"own pid namespace": unix.CLONE_NEWPID, "the host's": 0} {
		t.Run(name, func(t *testing.T) {
			cg := cgroup(t, "")
			w := watch(t, g, cg)
			c := helper(t, cg, "signal")
			c.SysProcAttr.Cloneflags |= flags
			if err := c.Run(); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			for _, e := range j.all(func(e Event) bool { return e.Scope == filepath.Base(cg) && e.Errno == unix.ESRCH }) {
				got[e.Syscall]++
				if e.Kind != Refused || e.Args[0] != noProcess {
					t.Errorf("got %+v, want target %d", e, noProcess)
				}
			}
			for _, s := range strangers {
				if n := got[calls[s.nr].name]; n != 1 {
					t.Errorf("%s: %d events, want 1", calls[s.nr].name, n)
				}
			}
		})
	}
}

// noProcess is a number above pid_max's highest value, 2^22.
const noProcess = 1<<22 + 1

var info [128]byte // siginfo_t; the kernel looks for the process first

// strangers are calls that find no process.
var strangers = []struct {
	nr   int
	args [4]uintptr
}{
	{unix.SYS_KILL, [4]uintptr{noProcess, 15}},
	{unix.SYS_TKILL, [4]uintptr{noProcess, 15}},
	{unix.SYS_TGKILL, [4]uintptr{noProcess, noProcess, 15}},
	{unix.SYS_RT_SIGQUEUEINFO, [4]uintptr{noProcess, 15, ptr(&info)}},
	{unix.SYS_RT_TGSIGQUEUEINFO, [4]uintptr{noProcess, noProcess, 15, ptr(&info)}},
	{unix.SYS_PIDFD_OPEN, [4]uintptr{noProcess}},
}

func signalStrangers() error {
	*(*int32)(unsafe.Pointer(&info[8])) = -1 // SI_QUEUE
	self := uintptr(os.Getpid())
	own := []struct {
		nr   int
		args [4]uintptr
	}{{unix.SYS_TGKILL, [4]uintptr{self, noProcess, 23}}, {unix.SYS_RT_TGSIGQUEUEINFO, [4]uintptr{self, noProcess, 23, ptr(&info)}}}
	for _, s := range append(own, strangers...) {
		_, _, errno := syscall.RawSyscall6(uintptr(s.nr), s.args[0], s.args[1], s.args[2], s.args[3], 0, 0)
		if errno != unix.ESRCH {
			return fmt.Errorf("%s%v: got %v, want ESRCH", calls[s.nr].name, s.args, errno)
		}
	}
	return nil
}
