package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/config"
)

// nobody is the user that TestUnprivileged's guard runs as.
const nobody = 65534

// ownPins is a directory for pins of uid's that has a BPF file system of its own.
func ownPins(t *testing.T, uid int) string {
	t.Helper()
	dir := t.TempDir()
	chmod(t, dir)
	dir += "/bpf"
	if err := PreparePins(dir, uid); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("no BPF file system: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(RemovePins(dir), RemovePins(dir)); err != nil || exists(dir) {
			t.Errorf("remove pins: %v, left behind: %v", err, exists(dir))
		}
	})
	return dir
}

// pinned are the sets in a directory for pins.
func pinned(dir string) []string { return must(filepath.Glob(dir + "/*_*")) }

// TestUnprivileged: a guard that is not root, with three capabilities, a cgroup
// of its own and a directory for pins, does all that root's does. Killed, it is
// taken over by the next one.
func TestUnprivileged(t *testing.T) {
	ready(t)
	if os.Geteuid() != 0 {
		t.Skipf("this test gives up root, and is uid %d", os.Geteuid())
	}
	dir, own, cg := ownPins(t, nobody), cgroup(t, ""), cgroup(t, "")
	if err := errors.Join(Delegate(own, nobody), os.Chmod(cg, 0o755), os.Chown(cg+"/cgroup.freeze", nobody, -1)); err != nil {
		t.Fatal(err)
	}
	self := must(Lookup(os.Getpid(), must(os.Executable()))) // where nobody can't look
	run := func(how string) string {
		t.Helper()
		c := helper(t, own, "unprivileged", dir, own, cg, how, fmt.Sprint(self.Dev), fmt.Sprint(self.Ino))
		c.Stderr = nil
		c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		c.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
		out, err := c.CombinedOutput()
		if err != nil && (how != "die" || !killed(err)) {
			t.Fatalf("%s: %v: %s", how, err, out)
		}
		return string(out)
	}
	first := run("die")
	if !strings.HasPrefix(first, "T") || strings.HasPrefix(first, string(TierNone)) || !exists(dir+"/set_"+digest()) {
		t.Fatalf("reached %s, pins: %v", first, pinned(dir))
	}
	sleeper := sleepIn(t, cg)
	defer sleeper()
	if err := PreparePins(dir, nobody); err != nil { // as the supervisor does after a crash
		t.Fatal(err)
	}
	second := run("live")
	if !strings.Contains(second, "adopted 1") {
		t.Errorf("the second guard said %s", second)
	}
	if es := pinned(dir); len(es) > 0 {
		t.Errorf("pins are left behind: %v", es)
	}
}

// TestPreparePins: where nobody but root gets through, as systemd mounts it, is
// no place for the pins of another user.
func TestPreparePins(t *testing.T) {
	ownPins(t, 0) // or a skip
	dir := t.TempDir()
	chmod(t, dir)
	top := dir + "/sys"
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", top, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(top, 0)
	if err := PreparePins(top+"/pins", nobody); !errors.Is(err, os.ErrPermission) || exists(top+"/pins") {
		t.Errorf("below a folder of root's: %v, made: %v", err, exists(top+"/pins"))
	}
	if err := PreparePins(top+"/pins", 0); err != nil || !must(onBPF(top+"/pins")) {
		t.Errorf("root below its own: %v", err)
	}
	if err := RemovePins(top + "/pins"); err != nil || exists(top+"/pins") || !must(onBPF(top)) {
		t.Errorf("remove: %v", err)
	}
	hostsFolder(t, top, dir+"/bound")
	if err := os.Mkdir(dir+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/other/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemovePins(dir + "/other"); err == nil || !exists(dir+"/other/file") {
		t.Errorf("a folder with other things was removed: %v", err)
	}
}

// hostsFolder: beside a host's BPF file system a folder of it serves, and what is
// pinned there is found again when the mount namespace is gone.
func hostsFolder(t *testing.T, host, dir string) {
	old := hostBPF
	hostBPF = host
	defer func() { hostBPF = old }()
	prepared := func() {
		t.Helper()
		if err := PreparePins(dir, nobody); err != nil || !must(onBPF(dir)) {
			t.Fatalf("beside a host's: %v", err)
		}
	}
	prepared()
	if err := os.Mkdir(dir+"/set_x", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := RemoveNoPins(dir); err != nil || !exists(dir+"/set_x") {
		t.Errorf("with something pinned: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	prepared()
	if !exists(dir + "/set_x") {
		t.Error("the pins are gone with the mount")
	}
	if err := os.Remove(dir + "/set_x"); err != nil {
		t.Fatal(err)
	}
	if err := RemoveNoPins(dir); err != nil || exists(dir) || exists(hostFolder(dir)) {
		t.Errorf("remove: %v", err)
	}
}

// TestHostFolder: the folder of the host's has the name by which an uninstall
// looks for it; neither package may import the other.
func TestHostFolder(t *testing.T) {
	for _, p := range []config.Paths{config.Default("/").Paths, config.Default("/srv/box").Paths} {
		if got, want := p.HostPin(), hostFolder(p.Pin()); got != want {
			t.Errorf("config says %s, the guard binds %s", got, want)
		}
	}
}

// guardAlone is a whole life of a guard.
func guardAlone(args []string) error {
	g, err := Load(Options{Pin: args[0], Cgroup: args[1]})
	if err != nil {
		return err
	}
	fmt.Println(g.Tier(), g.Why(), "adopted", len(g.Adopted()))
	follow(g)
	if g.Tier() == TierNone {
		return g.Close()
	}
	id, err := CgroupID(args[2])
	if err != nil {
		return err
	}
	var n Inode
	if _, err := fmt.Sscan(args[4]+" "+args[5], &n.Dev, &n.Ino); err != nil {
		return err
	}
	w, err := g.Watch(Scope{ID: "alone", CgroupID: id, Cgroup: args[2], Exec: []Inode{n}})
	if err != nil {
		return err
	}
	if g.brakes[w.slot].Load() == nil {
		err = errors.New("it can't freeze the scope")
	}
	if args[3] == "die" {
		return errors.Join(err, unix.Kill(os.Getpid(), unix.SIGKILL))
	}
	return errors.Join(err, w.Close(), g.Close())
}
