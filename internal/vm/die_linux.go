package vm

import "syscall"

// dieWithParent lets the kernel end QEMU when the thread that started it ends,
// and with it the process. A process of its own group gets no Ctrl-C.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
