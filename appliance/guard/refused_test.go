package guard

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRefused: each refusal is reported with what it was about.
func TestRefused(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir := t.TempDir()
	chmod(t, dir)
	if err := os.Mkdir(dir+"/readonly", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(dir+"/socket", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, missing := range []bool{false, true} {
		cg := cgroup(t, "")
		w, err := g.Watch(Scope{
			ID: filepath.Base(cg), CgroupID: must(CgroupID(cg)), AuditENOENT: missing,
			Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		c := helper(t, cg, "refused", dir)
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		j.checkRefused(t, dir, Event{Scope: filepath.Base(cg), PID: c.Process.Pid, UID: 65534}, missing)
	}
	if n := g.Lost(); n != 0 {
		t.Errorf("lost %d events", n)
	}
}

// TestNoRefusals: a scope that wants none gets none, and alone costs the host
// nothing.
func TestNoRefusals(t *testing.T) {
	g := load(t)
	j := follow(g)
	dir := t.TempDir()
	chmod(t, dir)
	secret := dir + "/secret"
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	quiet, loud := cgroup(t, ""), cgroup(t, "")
	s := Scope{
		ID: "quiet", CgroupID: must(CgroupID(quiet)), NoRefusals: true,
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	}
	w, err := g.Watch(s)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if g.exit != nil {
		t.Error("sys_exit is attached though no scope wants refusals")
	}
	l := watch(t, g, loud)
	for _, cg := range []string{quiet, loud} {
		if err := helper(t, cg, "flood", secret, "1").Run(); err != nil {
			t.Fatal(err)
		}
	}
	j.await(t, 2, func(e Event) bool { return e.Scope == filepath.Base(loud) && e.Path == secret })
	if es := j.all(func(e Event) bool { return e.Scope == "quiet" && e.Kind == Refused }); len(es) > 0 {
		t.Errorf("a quiet scope reported %+v", es)
	}
	if err := l.Close(); err != nil || g.exit != nil {
		t.Errorf("with only the quiet scope left: %v, sys_exit attached: %v", err, g.exit != nil)
	}
}

// checkRefused looks for what beRefused did. The exec is its last call.
func (j *journal) checkRefused(t *testing.T, dir string, who Event, missing bool) {
	t.Helper()
	mine := func(e Event) bool { return e.Scope == who.Scope && e.Kind == Refused }
	j.await(t, 1, func(e Event) bool { return mine(e) && e.Syscall == "execve" })
	has := func(want Event) bool {
		return len(j.all(func(e Event) bool {
			return mine(e) && e.PID == who.PID && e.UID == who.UID && e.Comm != "" && e.Parent != "" && e.PPID == os.Getpid() &&
				e.Syscall == want.Syscall && e.Errno == want.Errno && e.Path == want.Path && e.Path2 == want.Path2 && e.Addr == want.Addr &&
				(want.Args[0] == 0 || e.Args[0] == want.Args[0])
		})) > 0
	}
	for _, want := range []Event{
		{Syscall: "openat", Errno: unix.EACCES, Path: dir + "/secret"},
		{Syscall: "openat", Errno: unix.EACCES, Path: "secret"},
		{Syscall: "openat", Errno: unix.EROFS, Path: dir + "/readonly/file"},
		{Syscall: "connect", Errno: unix.EACCES, Addr: "unix:" + dir + "/socket"},
		{Syscall: "renameat", Errno: unix.EACCES, Path: dir + "/secret", Path2: dir + "/other"},
		{Syscall: "kill", Errno: unix.EPERM, Args: [6]uint64{1}},
		{Syscall: "execve", Errno: unix.EACCES, Path: dir + "/secret"},
	} {
		if want.Syscall == "renameat" && has(Event{Syscall: "rename", Errno: want.Errno, Path: want.Path, Path2: want.Path2}) {
			continue // what the Go library uses on amd64
		}
		if !has(want) {
			t.Errorf("no event like %+v among %+v", want, j.all(mine))
		}
	}
	if got := has(Event{Syscall: "openat", Errno: unix.ENOENT, Path: dir + "/missing"}); got != missing {
		t.Errorf("ENOENT reported: %v, want %v", got, missing)
	}
}

// chmod opens the way to dir for everybody.
func chmod(t testing.TB, dir string) {
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlood: an agent can't drown the record, and what is left out is counted.
func TestFlood(t *testing.T) {
	const n = 20000
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	chmod(t, dir)
	secret := dir + "/secret"
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	watch(t, g, cg)
	if err := helper(t, cg, "flood", secret, "20000").Run(); err != nil {
		t.Fatal(err)
	}
	sum := func() (events, skipped uint64) {
		for _, e := range j.all(func(e Event) bool { return e.Path == secret }) {
			events++
			skipped += e.Skipped
		}
		return events, skipped
	}
	// A flood that goes on into the next second is told of in two parts.
	events, skipped := sum()
	for end := time.Now().Add(10 * time.Second); events+skipped < n+1 && time.Now().Before(end); events, skipped = sum() {
		time.Sleep(10 * time.Millisecond)
	}
	if events+skipped != n+1 || events > n/2 || g.Lost() != 0 {
		t.Errorf("%d events + %d left out, %d lost, want %d in all and most left out", events, skipped, g.Lost(), n+1)
	}
}

// TestTable: names and numbers belong together, and the kernel's array holds them.
func TestTable(t *testing.T) {
	for _, name := range []string{"syscalls.go", "syscalls_amd64.go", "syscalls_arm64.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		ast.Inspect(f, func(x ast.Node) bool {
			kv, ok := x.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			num, ok1 := kv.Key.(*ast.SelectorExpr)
			as, ok2 := kv.Value.(*ast.CallExpr)
			if !ok1 || !ok2 || len(as.Args) != 1 {
				return true
			}
			n++
			got := as.Args[0].(*ast.BasicLit).Value
			if want := strings.TrimPrefix(num.Sel.Name, "SYS_"); !strings.EqualFold(got, `"`+want+`"`) && want != "FSTATAT" {
				t.Errorf("%s: SYS_%s is called %s", name, want, got)
			}
			return true
		})
		if n == 0 {
			t.Errorf("%s: no entries found", name)
		}
	}
	for nr, c := range calls {
		if nr >= 512 || c.path[0] > 6 || c.path[1] > 6 || c.dir > 6 || c.addr > 5 {
			t.Errorf("%d: %+v does not fit NR_MAX or six arguments", nr, c)
		}
	}
}

// TestSockaddr reads addresses as agents pass them, whole and broken.
func TestSockaddr(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"\x02":                             "",
		"\x02\x00\x00\x50\x0a\x00\x00\x01": "10.0.0.1:80",
		"\x02\x00\x00\x50\x0a\x00\x00":     "family:2",
		"\x0a\x00\x01\xbb\x00\x00\x00\x00\xfd" + strings.Repeat("\x00", 14) + "\x01": "[fd00::1]:443",
		"\x0a\x00\x01\xbb":         "family:10",
		"\x01\x00/run/x\x00junk":   "unix:/run/x",
		"\x01\x00\x00name":         "unix:@name",
		"\x01\x00":                 "unix:",
		"\x10\x00\x00\x00\x00\x00": "family:16",
	} {
		if got := sockaddr([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestOverlay: on overlayfs stat(2) names a file differently than the kernel
// does; Lookup must agree with the kernel, also in a foreign mount namespace.
func TestOverlay(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir := t.TempDir()
	for _, d := range []string{"/a", "/b", "/m"} {
		if err := os.Mkdir(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program(t, dir+"/b/prog", dir+"/marker")
	if err := os.Symlink("/prog", dir+"/b/link"); err != nil {
		t.Fatal(err)
	}
	for _, listed := range []bool{true, false} {
		cg := cgroup(t, "")
		c := helper(t, cg, "overlay", dir, dir+"/m/prog")
		in, out := must(c.StdinPipe()), must(c.StdoutPipe())
		said := new(strings.Builder)
		c.Stderr = said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			c.Wait()
			if strings.Contains(said.String(), unix.ENODEV.Error()) {
				t.Skip("the kernel has no overlayfs: ", said)
			}
			t.Fatal(err, said)
		}
		n, err := Lookup(c.Process.Pid, dir+"/m/prog")
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat("/proc/"+strconv.Itoa(c.Process.Pid)+"/root"+dir+"/m/prog", &st); err != nil {
			t.Fatal(err)
		}
		t.Logf("stat says %d:%d, the kernel compares %d:%d", st.Dev, st.Ino, n.Dev, n.Ino)
		s := Scope{ID: filepath.Base(cg), Violation: Kill, CgroupID: must(CgroupID(cg))}
		if listed {
			s.Exec = []Inode{n}
		}
		w, err := g.Watch(s)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); killed(err) == listed {
			t.Errorf("listed %v: ended with %v", listed, err)
		}
		e := j.await(t, 1, func(e Event) bool { return e.Scope == s.ID && e.File == "prog" })[0]
		if e.Inode != n || e.Killed == listed {
			t.Errorf("event %+v, want inode %+v killed %v", e, n, !listed)
		}
	}
}
