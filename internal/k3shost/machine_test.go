package k3shost_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/clawbox/clawbox/internal/k3shost"
)

func boot(t *testing.T, o k3shost.Options) *k3shost.Machine {
	t.Helper()
	m, err := k3shost.Boot(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Halt(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func newLAN(t *testing.T) *k3shost.LAN {
	t.Helper()
	l, err := k3shost.NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// run runs a shell line inside.
func run(t *testing.T, m *k3shost.Machine, line string) string {
	t.Helper()
	out, err := m.Run(t.Context(), nil, "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// places are where K3s mounts things.
var places = strings.Fields("/run/k3s /run/flannel /run/netns /run/containerd /var/lib/rancher /var/lib/kubelet /var/lib/cni /etc/rancher /etc/cni /sys/fs/cgroup")

// traces are what a machine that lies below dir could leave on the host:
// mounts, and cgroups, which hold its processes. Others use this host, too, so
// it looks only where a machine or K3s makes them.
func traces(t *testing.T, dir string) []string {
	t.Helper()
	ms, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	var ts []string
	for _, m := range ms {
		for _, at := range append(places, dir) {
			if strings.HasPrefix(m.Mountpoint, at) {
				ts = append(ts, "mount "+m.Mountpoint)
			}
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "k3shost-"+strings.ToLower(t.Name())) {
			ts = append(ts, "cgroup "+p)
		}
		return nil // a cgroup of others may go at any time
	})
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func TestMachine(t *testing.T) {
	dir := t.TempDir()
	before := traces(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "note"), []byte("shown\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := boot(t, k3shost.Options{Name: "testmachine", Dir: filepath.Join(dir, "m"), LAN: newLAN(t), Binds: map[string]string{"/shown": filepath.Join(dir, "note")}})
	for line, want := range map[string]string{
		"hostname":                                   "testmachine",
		"cat /proc/1/comm":                           "exe",
		"cat /shown":                                 "shown",
		"ls /home /work 2>&1 | head -1":              "ls: cannot access '/work': No such file or directory",
		"cat /proc/sys/vm/overcommit_memory":         "1",
		"ip -4 -o addr show eth0 | awk '{print $4}'": m.Addr.String() + "/24",
		"ip route show default":                      "default via " + k3shost.Gateway.String() + " dev eth0",
		"grep -c . /proc/self/cgroup > /dev/null; grep -v ':/$' /proc/self/cgroup | grep -v ':/init$' | head -1": "",
		"touch /usr/x 2>&1": "touch: cannot touch '/usr/x': Read-only file system",
		"touch /shown 2>&1": "touch: cannot touch '/shown': Read-only file system",
	} {
		out, _ := m.Run(t.Context(), nil, "sh", "-c", line) // touch fails, as it should
		if got := strings.TrimSpace(out); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
	run(t, m, "echo stays > /var/lib/x; echo goes > /run/x; echo 0 > /proc/sys/vm/overcommit_memory; sleep 1000 >/dev/null 2>&1 & true")
	if now := traces(t, dir); len(now) <= len(before) {
		t.Errorf("a running machine has no cgroup: %v", now)
	}
	if err := m.Halt(); err != nil {
		t.Fatal(err)
	}
	if now := traces(t, dir); !slices.Equal(now, before) {
		t.Errorf("left behind: before %v, now %v", before, now)
	}
	m = boot(t, k3shost.Options{Name: "testmachine", Dir: filepath.Join(dir, "m"), LAN: newLAN(t)})
	if got := run(t, m, "cat /var/lib/x; ls /run/x 2>&1; ps ax | grep -c '[s]leep 1000'; true"); !strings.HasPrefix(got, "stays\nls: cannot access") || !strings.HasSuffix(got, "\n0") {
		t.Errorf("after the power cut: %q", got)
	}
}

// TestOneLAN has two machines reach each other, and nothing else.
func TestOneLAN(t *testing.T) {
	lan, dir := newLAN(t), t.TempDir()
	a := boot(t, k3shost.Options{Name: "testonelan-a", Dir: filepath.Join(dir, "a"), LAN: lan})
	b := boot(t, k3shost.Options{Name: "testonelan-b", Dir: filepath.Join(dir, "b"), LAN: lan})
	l, err := a.Listen("tcp", a.Addr.String()+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = c.Write([]byte("hello"))
			c.Close()
		}
	}()
	tap, err := lan.Tap()
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	c, err := b.Dial("tcp", a.Addr.String()+":7000")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	see := func(s k3shost.Sent) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); tap.Saw()[s] == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the tap missed %v: it saw %v", s, tap.Saw())
			}
		}
	}
	see(k3shost.Sent{Proto: "tcp 7000", To: a.Addr})
	if out := tap.Outside(); len(out) != 0 {
		t.Errorf("sent outside: %v", out)
	}
	run(t, b, "timeout 0.2 bash -c 'echo > /dev/udp/192.0.2.1/53; echo > /dev/tcp/192.0.2.1/443' 2>/dev/null; true")
	for _, p := range []string{"udp 53", "tcp 443"} {
		see(k3shost.Sent{Proto: p, To: netip.MustParseAddr("192.0.2.1")})
	}
	if out := tap.Outside(); len(out) < 2 {
		t.Errorf("frames to outside addresses: %v", out)
	}
	if c, err := net.DialTimeout("tcp", a.Addr.String()+":7000", time.Second); err == nil {
		if got, _ := io.ReadAll(c); string(got) == "hello" {
			t.Error("the host reaches into the machine")
		}
		c.Close()
	}
}

func TestCommand(t *testing.T) {
	m := boot(t, k3shost.Options{Name: "testcommand", Dir: t.TempDir(), LAN: newLAN(t)})
	_, err := m.Run(t.Context(), nil, "sh", "-c", "echo why >&2; exit 7")
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != 7 || !strings.Contains(err.Error(), "why") {
		t.Errorf("got %v, want exit status 7 and its reason", err)
	}
	if out, err := m.Run(t.Context(), []byte("in"), "cat"); out != "in" || err != nil {
		t.Errorf("cat: %q, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.Run(ctx, nil, "sleep", "1000"); err == nil {
		t.Error("a command outlived its context")
	}
	if got := run(t, m, "ps ax | grep -c '[s]leep 1000'; true"); got != "0" {
		t.Errorf("%s processes are left of a cancelled command", got)
	}
}
