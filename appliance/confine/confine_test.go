package confine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// helpers run in a process of their own, because what they do cannot be
// undone. Each prints one line.
var helpers = map[string]func() error{}

func TestMain(m *testing.M) {
	name := os.Getenv("CLAWBOX_TEST_HELPER")
	if name == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	if err := helpers[name](); err != nil {
		fmt.Println(err)
	}
	os.Exit(0)
}

// help runs a helper and returns what it printed.
func help(t *testing.T, name string) (string, *os.ProcessState) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "CLAWBOX_TEST_HELPER="+name, "CLAWBOX_TEST_DIR="+t.TempDir())
	out, _ := c.CombinedOutput()
	return strings.TrimSpace(string(out)), c.ProcessState
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("dropping privileges needs some; euid is %d", os.Geteuid())
	}
	if v, err := LandlockABI(); err != nil || v < 1 {
		t.Skipf("Landlock ABI is %d, %v; want 1", v, err)
	}
}

// spec allows reading one directory and nothing else.
func spec(t testing.TB, dir string) *Spec {
	f, err := Profile("default")
	if err != nil {
		panic(err)
	}
	v, err := LandlockABI()
	if err != nil {
		panic(err)
	}
	return &Spec{
		Version: Version, Args: []string{"/bin/true"}, Dir: "/", UID: 65533, GID: 65532, Seccomp: f,
		Limits:   []Limit{{"core", 1}, {"nofile", 64}},
		Landlock: Landlock{ABI: min(v, MaxABI), Read: []string{dir}},
	}
}

func init() {
	helpers["apply"] = func() error {
		dir := os.Getenv("CLAWBOX_TEST_DIR")
		os.Chmod(filepath.Dir(dir), 0o755)
		os.Chmod(dir, 0o755)
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		for _, d := range []string{in, out} {
			if err := errors.Join(os.Mkdir(d, 0o777), os.WriteFile(d+"/f", nil, 0o666)); err != nil {
				return err
			}
		}
		if _, err := apply(spec(nil, in), extras{scope: true}); err != nil {
			return err
		}
		return inside(in, out)
	}
	helpers["self"] = func() error {
		dir := os.Getenv("CLAWBOX_TEST_DIR")
		os.Chmod(filepath.Dir(dir), 0o755)
		os.Chmod(dir, 0o755)
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		for _, d := range []string{in, out} {
			if err := errors.Join(os.Mkdir(d, 0o777), os.WriteFile(d+"/f", nil, 0o666)); err != nil {
				return err
			}
		}
		stop := make(chan struct{})
		for range 4 { // threads that exist before
			go func() { runtime.LockOSThread(); <-stop }()
		}
		if err := Self(spec(nil, in)); err != nil {
			return err
		}
		got := make(chan error)
		for range 8 {
			go func() { runtime.LockOSThread(); got <- inside(in, out) }()
		}
		first := <-got
		for range 7 {
			if err := <-got; err.Error() != first.Error() {
				return fmt.Errorf("threads differ: %w, %w", first, err)
			}
		}
		close(stop)
		return first
	}
	helpers["kept"] = func() error {
		s := spec(nil, "/usr")
		s.Capabilities = []string{"NET_BIND_SERVICE", "IPC_LOCK"}
		f, err := apply(s, extras{})
		if err != nil {
			return err
		}
		has := func(c uintptr) uintptr {
			r, _, _ := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0)
			return r
		}
		return fmt.Errorf("%v, bind %v, lock %v, admin %v", f.verified(), has(unix.CAP_NET_BIND_SERVICE), has(unix.CAP_IPC_LOCK), has(unix.CAP_SYS_ADMIN))
	}
	helpers["odd capability"] = func() error {
		s := spec(nil, "/usr")
		s.Capabilities = []string{"SYS_ADMIN"}
		_, err := apply(s, extras{})
		return err
	}
	helpers["silent landlock"] = func() error { return fmt.Errorf("refused %v, probed %v", refused(), probed(Landlock{})) }
	helpers["unverified"] = func() error {
		f, err := prepare(spec(nil, "/"), extras{})
		return fmt.Errorf("%v %v", f.verified(), err)
	}
	helpers["x32"] = func() error {
		if _, err := apply(spec(nil, os.Getenv("CLAWBOX_TEST_DIR")), extras{}); err != nil {
			return err
		}
		unix.RawSyscall(0x40000000|unix.SYS_GETPID, 0, 0, 0)
		return errors.New("survived")
	}
	helpers["high abi"] = func() error {
		s := spec(nil, os.Getenv("CLAWBOX_TEST_DIR"))
		s.Landlock.ABI = 99
		_, err := apply(s, extras{})
		return err
	}
	helpers["link"] = func() error {
		dir := os.Getenv("CLAWBOX_TEST_DIR")
		if err := os.Symlink("/etc", dir+"/l"); err != nil {
			return err
		}
		_, err := apply(spec(nil, dir+"/l"), extras{})
		return err
	}
	helpers["exec"] = func() error {
		if _, err := apply(spec(nil, os.Getenv("CLAWBOX_TEST_DIR")), extras{}); err != nil {
			return err
		}
		return syscall.Exec("/proc/self/exe", []string{"x"}, nil) // not permitted by Landlock
	}
}

// inside says what the calling thread can still do.
func inside(in, out string) error {
	open := func(p string, flags int) error {
		fd, err := unix.Open(p, flags, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	var lim unix.Rlimit
	unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &lim)
	_, _, mount := unix.RawSyscall(unix.SYS_MOUNT, 0, 0, 0)
	_, _, bound := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0)
	b, _, _ := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0)
	g, _ := unix.Getgroups()
	return fmt.Errorf("in %v, in for writing %v, out %v, uid %d, gid %d, groups %v, nofile %d/%d, mount %v, sys_admin %d %d",
		open(in+"/f", unix.O_RDONLY), open(in+"/f", unix.O_WRONLY), open(out+"/f", unix.O_RDONLY),
		unix.Getuid(), unix.Getegid(), g, lim.Cur, lim.Max, mount, b, bound)
}

// TestApply restricts a process for real and looks at it from inside.
func TestApply(t *testing.T) {
	needRoot(t)
	for name, want := range map[string]string{
		"apply":           "in <nil>, in for writing permission denied, out permission denied, uid 65533, gid 65532, groups [], nofile 64/64, mount operation not permitted, sys_admin 0 0",
		"self":            "in <nil>, in for writing permission denied, out permission denied, uid 65533, gid 65532, groups [], nofile 64/64, mount operation not permitted, sys_admin 0 0",
		"kept":            "true, bind 1, lock 1, admin 0",
		"odd capability":  "want one of",
		"silent landlock": "refused false, probed true",
		"high abi":        "spec requires 99",
		"link":            "too many levels of symbolic links",
		"unverified":      "false <nil>",
		"exec":            "permission denied",
	} {
		if got, _ := help(t, name); !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if runtime.GOARCH == "amd64" {
		got, st := help(t, "x32")
		if ws := st.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != unix.SIGSYS {
			t.Errorf("x32 call: %v, %q; want death by SIGSYS", st, got)
		}
	}
}

func TestDecode(t *testing.T) {
	whole := func(change func([]byte) []byte) []byte {
		var out bytes.Buffer
		if err := Send(&out, sample()); err != nil {
			t.Fatal(err)
		}
		return change(out.Bytes()[8:])
	}
	put := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], v); return b }
	}
	for name, x := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"whole":         {func(b []byte) []byte { return b }, ""},
		"longer":        {func(b []byte) []byte { return append(b, 0) }, "1 bytes behind the end"},
		"version":       {put(0, Version+1), "one release"},
		"huge number":   {put(0, 1<<40), "want one of 32 bits"},
		"long text":     {put(8, 1<<62), "length 4611686018427387904"},
		"long list":     {put(17, 1<<62), "length 4611686018427387904"},
		"truth value 7": {func(b []byte) []byte { b[len(b)-8] = 7; return b }, "want 0 or 1"},
		"empty":         {func([]byte) []byte { return nil }, "early"},
	} {
		var r Root
		if err := decode(whole(x.change), &r); (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: got %v, want %q", name, err, x.want)
		}
	}
	// Cut anywhere, it is never taken.
	b := whole(func(b []byte) []byte { return b })
	for n := range b {
		if decode(b[:n], &Root{}) == nil {
			t.Fatalf("the first %d of %d bytes were taken", n, len(b))
		}
	}
	if err := receive(bytes.NewReader(append([]byte{200, 0, 0, 0, 0, 0, 0, 0}, b[:100]...)), &Root{}); err == nil {
		t.Error("a message without its end was taken")
	}
	if err := receive(strings.NewReader(strings.Repeat("x", 100)), &Root{}); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too long: %v", err)
	}
}

// sample has no field at its zero value: TestWire holds that.
func sample() *Root {
	s := Spec{
		Version: Version, Args: []string{"/a", "b"}, Env: []string{"C=d"}, Dir: "/e", UID: 1, GID: 2, Limits: []Limit{{"core", 1}},
		Landlock: Landlock{3, []string{"/r"}, []string{"/w"}, []string{"/x"}, []string{"/d"}}, Seccomp: Filter{{Code: 6, Jt: 1, Jf: 2, K: 3}},
		Capabilities: []string{"CHOWN"}, TTY: true,
	}
	return &Root{Version: Version, Hostname: "h", Layers: []string{"/1", "/2"}, Binds: []Bind{{"/s", "/t", true, true}}, Scratch: 1, Shm: 2, Supervisor: s}
}

// TestWire sends every field through, so that one that walk forgets is seen.
func TestWire(t *testing.T) {
	want := sample()
	for _, v := range []reflect.Value{reflect.ValueOf(*want), reflect.ValueOf(want.Supervisor), reflect.ValueOf(want.Supervisor.Landlock), reflect.ValueOf(want.Binds[0])} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("the sample lacks %s.%s", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
	var b bytes.Buffer
	var got Root
	if err := errors.Join(Send(&b, want), receive(&b, &got)); err != nil || !reflect.DeepEqual(&got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	want.Binds[0].Exec = false
	if err := want.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	good := func() *Root {
		return &Root{Version: Version, Hostname: "h", Layers: []string{"/1", "/2"}, Scratch: 1, Shm: 1, Supervisor: *spec(t, "/usr")}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*Root){
		"root has version 4":           func(r *Root) { r.Version = Version + 1 },
		"want at least 2":              func(r *Root) { r.Layers = r.Layers[:1] },
		"sizes above 0":                func(r *Root) { r.Scratch = 0 },
		"which the launcher mounts":    func(r *Root) { r.Binds = []Bind{{"/s", "/proc/sys", false, false}} },
		"at or below /,":               func(r *Root) { r.Binds = []Bind{{"/s", "/", false, false}} },
		"both writable and executable": func(r *Root) { r.Binds = []Bind{{"/s", "/t", true, true}} },
		"not absolute and clean":       func(r *Root) { r.Binds = []Bind{{"/s/../x", "/t", true, false}} },
		"spec has version 0":           func(r *Root) { r.Supervisor.Version = 0 },
		"uid 0 and gid":                func(r *Root) { r.Supervisor.UID = 0 },
		"and gid 0":                    func(r *Root) { r.Supervisor.GID = 0 },
		"no system call filter":        func(r *Root) { r.Supervisor.Seccomp = nil },
		"no program":                   func(r *Root) { r.Supervisor.Args = nil },
		"wants Landlock ABI 0":         func(r *Root) { r.Supervisor.Landlock.ABI = 0 },
		`unknown resource "cpu"`:       func(r *Root) { r.Supervisor.Limits = []Limit{{"cpu", 1}} },
		`path "usr" is not`:            func(r *Root) { r.Supervisor.Landlock.Read = []string{"usr"} },
		`path "/a/" is not`:            func(r *Root) { r.Supervisor.Landlock.Exec = []string{"/a/"} },
	}
	for want, spoil := range tests {
		r := good()
		spoil(r)
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestLauncherByHand checks what the launcher says when started by hand.
func TestLauncherByHand(t *testing.T) {
	if got := Main([]string{"frobnicate"}); got != ExitFailed {
		t.Errorf("status %d, want %d", got, ExitFailed)
	}
}
