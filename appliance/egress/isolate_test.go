package egress

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestIsolate takes everything but lo out of a namespace, and never touches
// the host's.
func TestIsolate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("namespaces need root; euid is %d", os.Geteuid())
	}
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := Isolate(own); err == nil {
		t.Fatal("the host's interfaces would be deleted")
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	at := netlink.NsPid(cmd.Process.Pid)
	eth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", Flags: net.FlagUp, Namespace: at}, PeerName: "eth1", PeerNamespace: at}
	if err := netlink.LinkAdd(eth); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second time there is nothing to do
		if err := Isolate(ns); err != nil {
			t.Fatal(err)
		}
	}
	var left []net.Interface
	if err := within(ns, func() (err error) { left, err = net.Interfaces(); return err }); err != nil {
		t.Fatal(err)
	}
	for _, i := range left {
		if i.Name == "eth0" || i.Name == "eth1" || i.Name != "lo" && i.Flags&net.FlagUp != 0 {
			t.Errorf("interface %s is left: %v", i.Name, i.Flags)
		}
	}
}
