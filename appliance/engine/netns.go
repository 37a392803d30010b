package engine

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NewNetNS makes a network namespace that has its own loopback and nothing
// else. It lasts as long as the file, or a process in it. It needs
// CAP_SYS_ADMIN.
func NewNetNS() (*os.File, error) {
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made)
	go onOwnThread(func() {
		f, err := unshareNet()
		done <- made{f, err}
	})
	m := <-done
	if m.err != nil {
		return nil, fmt.Errorf("engine: make a network namespace: %w", m.err)
	}
	return m.f, nil
}

// unshareNet moves the calling thread into a new namespace.
func unshareNet() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	f, err2 := os.Open("/proc/thread-self/ns/net")
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	return f, nil
}
