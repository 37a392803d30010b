package vm

import (
	"fmt"
	"io"
	"os"
)

// archive writes the initramfs: a cpio archive in the "newc" form of the
// kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Every
// entry belongs to root and has no time, so that equal content is equal bytes.
type archive struct {
	w   io.Writer
	n   int // bytes written
	ino int
	err error
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(b)
		a.n += n
	}
}

// pad fills up to the next multiple of four.
func (a *archive) pad() { a.write(make([]byte, -a.n&3)) }

// entry writes one entry. mode carries the file's type, as in stat(2).
func (a *archive) entry(name string, mode uint32, data []byte) {
	a.ino++
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(data)
	a.pad()
}

func (a *archive) dir(name string)               { a.entry(name, 0o040755, nil) }
func (a *archive) text(name, data string)        { a.entry(name, 0o100644, []byte(data)) }
func (a *archive) program(name string, b []byte) { a.entry(name, 0o100755, b) }
func (a *archive) end() error                    { a.entry("TRAILER!!!", 0, nil); return a.err }

// initramfs writes the archive with the first program and the modules that it
// loads, in that order.
func initramfs(to, init string, modules [][]byte) error {
	b, err := os.ReadFile(init)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	a := &archive{w: f}
	for _, d := range []string{"dev", "proc", "sys", "root", "modules"} {
		a.dir(d)
	}
	a.program("init", b)
	for i, m := range modules {
		a.text(fmt.Sprintf("modules/%03d.ko", i), string(m))
	}
	if err := a.end(); err != nil {
		return err
	}
	return f.Close()
}
