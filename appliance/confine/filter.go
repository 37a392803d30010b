package confine

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Filter is a compiled system call filter. As text it is base64 of struct
// sock_filter (linux/filter.h), little-endian, 8 bytes an instruction: a
// launcher decodes one in the path of every start, and JSON objects would
// take it longer than everything else that it reads.
type Filter []unix.SockFilter

// maxFilter is BPF_MAXINSNS, what the kernel takes.
const maxFilter = 4096

// MarshalText implements encoding.TextMarshaler.
func (f Filter) MarshalText() ([]byte, error) {
	b := make([]byte, 0, 8*len(f))
	for _, in := range f {
		b = binary.LittleEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.LittleEndian.AppendUint32(b, in.K)
	}
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Filter) UnmarshalText(t []byte) error {
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, t)
	if err != nil {
		return fmt.Errorf("system call filter: %w", err)
	}
	if len(b)%8 != 0 || len(b) > 8*maxFilter {
		return fmt.Errorf("system call filter has %d bytes; want a multiple of 8, at most %d", len(b), 8*maxFilter)
	}
	out := make(Filter, len(b)/8)
	for i := range out {
		p := b[8*i:]
		out[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(p), Jt: p[2], Jf: p[3], K: binary.LittleEndian.Uint32(p[4:])}
	}
	*f = out
	return nil
}
