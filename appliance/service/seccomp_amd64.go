package service

import "golang.org/x/sys/unix"

// auditArch also keeps out x32, whose numbers carry a bit that no list has.
const auditArch = unix.AUDIT_ARCH_X86_64

var (
	archCommon = []uint32{unix.SYS_OPEN, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_READLINK, unix.SYS_ACCESS, unix.SYS_POLL, unix.SYS_EPOLL_WAIT, unix.SYS_ARCH_PRCTL}
	archWrite  = []uint32{unix.SYS_RENAME, unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_UNLINK, unix.SYS_LINK, unix.SYS_CHMOD}
)
