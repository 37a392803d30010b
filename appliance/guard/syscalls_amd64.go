package guard

import "golang.org/x/sys/unix"

// auditArch is AUDIT_ARCH_X86_64 of linux/audit.h; x32Bit marks a call of x32.
const (
	auditArch = 0xc000003e
	x32Bit    = 1 << 30
)

// own are the calls that only this architecture has: mostly the ones from before the *at family.
var own = map[int]call{
	unix.SYS_OPEN:       creates(file(named(first))).as("open"),
	unix.SYS_CREAT:      creates(file(named(first))).as("creat"),
	unix.SYS_STAT:       named(first).as("stat"),
	unix.SYS_LSTAT:      named(first).as("lstat"),
	unix.SYS_ACCESS:     named(first).as("access"),
	unix.SYS_READLINK:   named(first).as("readlink"),
	unix.SYS_NEWFSTATAT: named(at).as("newfstatat"),
	unix.SYS_MKDIR:      creates(first).as("mkdir"),
	unix.SYS_MKNOD:      creates(first).as("mknod"),
	unix.SYS_UNLINK:     first.as("unlink"),
	unix.SYS_RMDIR:      first.as("rmdir"),
	unix.SYS_CHMOD:      first.as("chmod"),
	unix.SYS_CHOWN:      first.as("chown"),
	unix.SYS_LCHOWN:     first.as("lchown"),
	unix.SYS_UTIME:      first.as("utime"),
	unix.SYS_UTIMES:     first.as("utimes"),
	unix.SYS_USELIB:     first.as("uselib"),
	unix.SYS_FUTIMESAT:  at.as("futimesat"),
	unix.SYS_RENAME:     creates(both).as("rename"),
	unix.SYS_LINK:       creates(both).as("link"),
	unix.SYS_SYMLINK:    creates(both).as("symlink"),
	unix.SYS_IOPL:       plain.as("iopl"),
	unix.SYS_IOPERM:     plain.as("ioperm"),
	unix.SYS_MODIFY_LDT: plain.as("modify_ldt"),
	unix.SYS_ARCH_PRCTL: plain.as("arch_prctl"),
	unix.SYS_FORK:       plain.as("fork"),
	unix.SYS_VFORK:      plain.as("vfork"),
}

// foreignOpens are the calls of i386 that open a file: open, creat, openat,
// open_by_handle_at, open_tree, openat2 (arch/x86/entry/syscalls/syscall_32.tbl).
var foreignOpens = []int{5, 8, 295, 342, 428, 437}
