// Command guest is the first program of a test's virtual machine, see the
// package vm. As the kernel's init it loads the modules of its initramfs,
// makes the disk the root, mounts what a Debian host has mounted, and starts
// itself once more to serve commands; then it only reaps. When the server ends
// the machine does. With vm.Handover on the kernel's command line it becomes the
// disk's /sbin/init instead, and a unit of systemd starts the server.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/internal/vm"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintln(os.Stderr, "guest:", initialise())
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // under -no-reboot QEMU ends
	select {}
}

// initialise returns when the machine shall end.
func initialise() error {
	if err := early(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	handsOver := slices.Contains(strings.Fields(string(line)), vm.Handover)
	if err := enterDisk(); err != nil {
		return err
	}
	if handsOver {
		return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux"})
	}
	if err := prepare(); err != nil {
		return err
	}
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	c := exec.Command("/proc/self/exe")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return err
	}
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		if pid == c.Process.Pid || err == unix.ECHILD {
			return fmt.Errorf("the server ended: status %d, signal %v (%v)", st.ExitStatus(), st.Signal(), err)
		}
	}
}
