package guard

import "encoding/binary"

const probeMachine = 62 // EM_X86_64

// probeCode is followed by the path.
func probeCode(flags uint32) []byte {
	imm := func(op []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(op, v) }
	var tail []byte
	tail = append(tail, imm([]byte{0xba}, flags)...)       // mov edx, flags
	tail = append(tail, imm([]byte{0x41, 0xba}, 0o600)...) // mov r10d, 0600
	tail = append(tail, imm([]byte{0xb8}, 257)...)         // mov eax, openat
	tail = append(tail, 0x0f, 0x05)                        // syscall
	tail = append(tail, imm([]byte{0xbf}, probeStatus)...) // mov edi, status
	tail = append(tail, imm([]byte{0xb8}, 60)...)          // mov eax, exit
	tail = append(tail, 0x0f, 0x05)                        // syscall

	code := []byte{0xbf, 0x9c, 0xff, 0xff, 0xff}                             // mov edi, AT_FDCWD
	code = append(code, imm([]byte{0x48, 0x8d, 0x35}, uint32(len(tail)))...) // lea rsi, [rip + tail]
	return append(code, tail...)
}
