package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeStatus is what a probe exits with when it ran to its end.
const probeStatus = 42

// probe is a whole ELF program of some 200 bytes that calls
// openat(AT_FDCWD, path, flags, 0600) and exits with probeStatus. The kernel
// loads it without help of a dynamic linker, so that what happens is due to
// the guard alone. Headers after the System V gABI, "ELF Header" and "Program
// Header".
func probe(path string, flags int) []byte {
	const base, head = 0x400000, 64 + 56
	code := probeCode(uint32(flags))
	code = append(append(code, path...), 0)
	size := uint64(head + len(code))

	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, probeMachine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+head) // entry
	b = le.AppendUint64(b, 64)        // program headers
	b = le.AppendUint64(b, 0)         // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 0x10000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

// place makes an executable file of code. Hardened hosts refuse anonymous
// files (vm.memfd_noexec=2) or mount /tmp noexec, seldom both.
func place(code []byte) (*os.File, error) {
	f, err := placeMemory(code)
	if err == nil {
		return f, nil
	}
	g, err2 := placeDisk(code)
	if err2 == nil {
		return g, nil
	}
	return nil, fmt.Errorf("no place for an executable file: %w", errors.Join(err, err2))
}

func placeMemory(code []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("clawbox-probe", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("clawbox-probe", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	w := os.NewFile(uintptr(fd), "clawbox-probe")
	defer w.Close()
	if _, err := w.Write(code); err != nil {
		return nil, err
	}
	// A file that is open for writing can't be executed: open it once more.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func placeDisk(code []byte) (*os.File, error) {
	dir, err := os.MkdirTemp("", "clawbox-probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // the open descriptor keeps the file
	name := filepath.Join(dir, "probe")
	if err := os.WriteFile(name, code, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Access(name, unix.X_OK); err != nil {
		return nil, fmt.Errorf("%s is not executable: %w", name, err)
	}
	return os.Open(name)
}
