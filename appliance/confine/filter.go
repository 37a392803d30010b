package confine

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Filter is a compiled system call filter.
type Filter []unix.SockFilter

// maxFilter is BPF_MAXINSNS, what the kernel takes.
const maxFilter = 4096

// walk carries struct sock_filter (linux/filter.h): 8 bytes an instruction.
func (f *Filter) walk(c *codec) {
	n := c.length(len(*f), 8)
	if n > maxFilter {
		c.fail("system call filter has %d instructions; want at most %d", n, maxFilter)
		return
	}
	if !c.reads {
		for _, in := range *f {
			c.b = binary.LittleEndian.AppendUint16(c.b, in.Code)
			c.b = append(c.b, in.Jt, in.Jf)
			c.b = binary.LittleEndian.AppendUint32(c.b, in.K)
		}
		return
	}
	out := make(Filter, n)
	for i := range out {
		p := c.take(8)
		out[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(p), Jt: p[2], Jf: p[3], K: binary.LittleEndian.Uint32(p[4:])}
	}
	*f = out
}
