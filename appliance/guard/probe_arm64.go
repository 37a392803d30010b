package guard

import "encoding/binary"

const probeMachine = 183 // EM_AARCH64

// probeCode is followed by the path. Encodings after the Arm A64 instruction
// set: MOVZ, MOVK, MOVN, ADR, SVC.
func probeCode(flags uint32) []byte {
	movz := func(reg, v uint32) uint32 { return 0xd2800000 | v<<5 | reg }
	const svc = 0xd4000001
	ops := []uint32{
		0x92800000 | 99<<5, // movn x0, #99: AT_FDCWD
		0,                  // adr x1, path
		movz(2, flags&0xffff),
		0xf2a00000 | flags>>16<<5 | 2, // movk x2, flags >> 16, lsl 16
		movz(3, 0o600),
		movz(8, 56), // openat
		svc,
		movz(0, probeStatus),
		movz(8, 93), // exit
		svc,
	}
	ahead := uint32(len(ops)-1) * 4
	ops[1] = 0x10000000 | ahead>>2<<5 | 1
	var code []byte
	for _, op := range ops {
		code = binary.LittleEndian.AppendUint32(code, op)
	}
	return code
}
