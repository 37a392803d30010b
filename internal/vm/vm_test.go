package vm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cacheEnv names the cache of `make test-kernels`. Without it the tests that
// boot are skipped: they download 200 MB.
const cacheEnv = "CLAWBOX_VM_CACHE"

// machine boots the named kernel with a disk that holds busybox.
func machine(t *testing.T, s Series) *Machine {
	t.Helper()
	if os.Getenv(cacheEnv) == "" {
		t.Skip(cacheEnv + " names no cache; `make test-kernels` sets it")
	}
	c := Cache(os.Getenv(cacheEnv))
	k, err := c.Kernel(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	q, err := c.Emulator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	init, root, disk := filepath.Join(dir, "guest"), filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	b := exec.Command("go", "build", "-o", init, "./guest")
	b.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := b.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := Lend(t.Context(), root, "/bin/busybox"); err != nil {
		t.Fatal(err)
	}
	if err := Disk(t.Context(), disk, root, 64); err != nil {
		t.Fatal(err)
	}
	m, err := Start(t.Context(), Config{Emulator: q, Kernel: k, Init: init, Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestMachine(t *testing.T) {
	for _, s := range Kernels {
		t.Run(s.Name, func(t *testing.T) {
			m := machine(t, s)
			if out, err := m.Output(t.Context(), "/bin/busybox", "uname", "-r"); err != nil || !strings.HasPrefix(out, s.Name+".") {
				t.Errorf("uname: %q, %v", out, err)
			}
			var out, errs bytes.Buffer
			code, err := m.Run(t.Context(), Command{
				Args: []string{"/bin/busybox", "sh", "-c", "echo $A; pwd; echo e >&2; exit 7"},
				Env:  []string{"A=b"}, Dir: "/sys", Stdout: &out, Stderr: &errs,
			})
			if code != 7 || err != nil || out.String() != "b\n/sys\n" || errs.String() != "e\n" {
				t.Errorf("got %d, %v, %q, %q", code, err, out.String(), errs.String())
			}
			if _, err := m.Run(t.Context(), Command{Args: []string{"/no/such"}}); err == nil || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("a missing program: %v", err)
			}
			code, err = m.Run(t.Context(), Command{Args: []string{"/bin/busybox", "sleep", "600"}, Limit: time.Second})
			if code != 128+9 || err != nil {
				t.Errorf("past its limit: %d, %v", code, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, err := m.Run(ctx, Command{Args: []string{"/bin/busybox", "sleep", "600"}}); err == nil || !strings.Contains(err.Error(), "deadline") {
				t.Errorf("past the context's end: %v", err)
			}
		})
	}
}

// The archive is read back by busybox's cpio where there is one, and by hand:
// its length is a multiple of four after every entry.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := &archive{w: &b}
	a.dir("dev")
	a.program("init", []byte("abc"))
	a.text("modules/000.ko", "12345")
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 || b.Len() != a.n {
		t.Errorf("length %d, counted %d", b.Len(), a.n)
	}
	cmd := exec.Command("busybox", "cpio", "-it")
	cmd.Stdin = bytes.NewReader(b.Bytes())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("busybox cpio: %v: %s (package busybox-static; `make setup` installs it)", err, out)
	}
	if got := strings.Fields(string(out)); strings.Join(got[:3], " ") != "dev init modules/000.ko" {
		t.Errorf("got %q", got)
	}
}

// A bzImage that lies about its payload is refused.
func TestVmlinuxRefuses(t *testing.T) {
	head := make([]byte, 0x260)
	copy(head[0x202:], "HdrS")
	long := bytes.Clone(head)
	long[0x24c] = 0xff
	for name, b := range map[string][]byte{"empty": nil, "no magic": make([]byte, 4096), "no payload": head, "beyond the end": long} {
		if out, err := vmlinux(t.Context(), b); err == nil {
			t.Errorf("%s: got %d bytes", name, len(out))
		}
	}
}
