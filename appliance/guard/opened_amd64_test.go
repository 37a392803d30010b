package guard

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// oldOpenings are opened by openOld.
var oldOpenings = openings[:0:0]

func init() {
	old := func(name, path, file string, a Access) {
		o := openings[0]
		o.name, o.path, o.file, o.access = name, path, file, a
		oldOpenings = append(oldOpenings, o)
	}
	old("open", "/old", "old", ReadOnly)
	old("creat", "/created", "created", WriteOnly)
}

// openOld uses the calls from before the *at family.
func openOld(dir string) error {
	for _, c := range []struct {
		nr, a uintptr
		path  string
	}{{unix.SYS_OPEN, unix.O_RDONLY, "/old"}, {unix.SYS_CREAT, 0o600, "/created"}} {
		p, err := unix.BytePtrFromString(dir + c.path)
		if err != nil {
			return err
		}
		if _, _, errno := unix.Syscall(c.nr, ptr(p), c.a, 0); errno != 0 {
			return errno
		}
	}
	return nil
}

// TestForeign: a program may leave the 64-bit calls for the 32-bit ones at any
// time, with other numbers. What it opens is told all the same.
func TestForeign(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	secret := dir + "/secret"
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/prog", int80(probe(secret, unix.O_RDONLY)), 0o755); err != nil {
		t.Fatal(err)
	}
	w := audit(t, g, cg, must(Lookup(os.Getpid(), dir)).Dev)
	c := helper(t, cg, "exec", dir+"/prog")
	c.Run()
	if s := c.ProcessState; s.ExitCode() != probeStatus {
		if st := s.String(); st == "signal: segmentation fault" || st == "signal: segmentation fault (core dumped)" {
			t.Skipf("the kernel has no 32-bit calls: int 0x80 ended with %s", st)
		}
		t.Fatalf("ended with %v", s)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	es := j.all(func(e Event) bool { return e.Kind == Opened && e.Comm == "prog" })
	call := "foreign:5"
	if g.hooks != nil {
		call = ""
	}
	if len(es) != 1 || es[0].Inode != must(Lookup(os.Getpid(), secret)) || es[0].File != "secret" || es[0].Syscall != call || es[0].Scope != filepath.Base(cg) {
		t.Errorf("got %+v, want one open of %s", es, secret)
	}
}

// int80 replaces a probe's code by i386's open(path, 0) and the same exit.
func int80(b []byte) []byte {
	const base, head = 0x400000, 64 + 56
	imm := func(op []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(op, v) }
	room := len(probeCode(0))
	var code []byte
	code = append(code, imm([]byte{0xb8}, 5)...)                      // mov eax, open
	code = append(code, imm([]byte{0xbb}, base+head+uint32(room))...) // mov ebx, path
	code = append(code, imm([]byte{0xb9}, unix.O_RDONLY)...)          // mov ecx, flags
	code = append(code, 0xcd, 0x80)                                   // int 0x80
	code = append(code, imm([]byte{0xbf}, probeStatus)...)            // mov edi, status
	code = append(code, imm([]byte{0xb8}, 60)...)                     // mov eax, exit
	code = append(code, 0x0f, 0x05)                                   // syscall
	copy(b[head:head+room], code)
	return b
}
