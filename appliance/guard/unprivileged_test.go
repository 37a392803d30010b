package guard

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is the user that TestUnprivileged's guard runs as.
const nobody = 65534

// TestUnprivileged: a guard that is not root, with three capabilities, a cgroup
// of its own and a directory for pins, does all that root's does.
func TestUnprivileged(t *testing.T) {
	dir, own, cg := pinDir(t), cgroup(t, ""), cgroup(t, "")
	if os.Geteuid() != 0 {
		t.Skipf("this test gives up root, and is uid %d", os.Geteuid())
	}
	if err := errors.Join(PreparePins(dir, nobody), Delegate(own, nobody), os.Chmod(cg, 0o755), os.Chown(cg+"/cgroup.freeze", nobody, -1)); err != nil {
		t.Fatal(err)
	}
	c := helper(t, own, "unprivileged", dir, own, cg)
	c.Stderr = nil
	c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	c.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
	if !strings.Contains(string(out), "T") || strings.Contains(string(out), string(TierNone)) {
		t.Errorf("reached %s", out)
	}
	if exists(dir + "/set_" + digest()) {
		t.Error("pins are left behind")
	}
}

// guardAlone is a whole life of a guard.
func guardAlone(args []string) error {
	g, err := Load(Options{Pin: args[0], Cgroup: args[1]})
	if err != nil {
		return err
	}
	fmt.Println(g.Tier(), g.Why())
	follow(g)
	if g.Tier() == TierNone {
		return g.Close()
	}
	id, err := CgroupID(args[2])
	if err != nil {
		return err
	}
	w, err := g.Watch(Scope{ID: "alone", CgroupID: id, Cgroup: args[2]})
	if err != nil {
		return err
	}
	if g.brakes[w.slot].Load() == nil {
		err = errors.New("it can't freeze the scope")
	}
	return errors.Join(err, w.Close(), g.Close())
}
