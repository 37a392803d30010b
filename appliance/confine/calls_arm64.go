package confine

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_AARCH64
	foreignBit = 0 // 32-bit calls have an audit architecture of their own
)

// forks is empty: arm64 has clone only.
var forks []uint32

var archAllowed []uint32

var archDenied = []uint32{unix.SYS_KEXEC_FILE_LOAD, unix.SYS_LOOKUP_DCOOKIE}

var archAbsent []uint32

var archSupervisor []uint32

var archBeyond []uint32
