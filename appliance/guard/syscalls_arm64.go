package guard

import "golang.org/x/sys/unix"

// auditArch is AUDIT_ARCH_AARCH64 of linux/audit.h; there is no x32.
const (
	auditArch = 0xc00000b7
	x32Bit    = 0
)

// own are the calls that only this architecture has, or calls by another name.
var own = map[int]call{
	unix.SYS_FSTATAT: named(at).as("newfstatat"),
}

// foreignOpens are the calls of 32-bit Arm that open a file: open, creat, openat,
// open_by_handle_at, open_tree, openat2 (arch/arm/tools/syscall.tbl).
var foreignOpens = []int{5, 8, 322, 371, 428, 437}
