package egress

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// BootID is the kernel's name for this boot of the host.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// life names the network namespace of a socket: never the same one twice, not
// even after a reboot, and the same one when this process was restarted.
func life(boot string, s syscall.Conn) (string, error) {
	cookie, err := Netns(s)
	return fmt.Sprintf("%s/%d", boot, cookie), err
}

// Netns is the kernel's number for the network namespace that a socket was made
// in, whoever holds it now: never 0, and never the same for two of one boot.
func Netns(s syscall.Conn) (cookie uint64, err error) {
	rc, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := rc.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("identify the network namespace: %w", err)
	}
	return cookie, nil
}
