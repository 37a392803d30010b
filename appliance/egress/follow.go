package egress

import (
	"bytes"
	"strconv"
	"strings"
	"sync/atomic"
)

// follower counts along with one HTTP/1 request, whose head inspect.Framing
// has passed, and sees whether bytes come after its end.
type follower struct {
	in   stage
	line []byte // what came of a head or a line that has not ended
	need int64  // bytes of body to come
	more atomic.Bool
}

type stage int

const (
	inHead stage = iota
	inBody
	inSize // the line before a chunk
	inChunk
	inTrailer
	atEnd
)

// feed takes the next bytes.
func (f *follower) feed(b []byte) {
	for len(b) > 0 && f.in != atEnd {
		switch f.in {
		case inBody, inChunk:
			n := min(f.need, int64(len(b)))
			b, f.need = b[n:], f.need-n
			if f.need == 0 {
				f.in = map[stage]stage{inBody: atEnd, inChunk: inSize}[f.in]
			}
		default:
			i := bytes.IndexByte(b, '\n') + 1
			if i == 0 {
				i = len(b)
			}
			f.line, b = append(f.line, b[:i]...), b[i:]
			f.lined()
		}
	}
	if len(b) > 0 {
		f.more.Store(true)
	}
}

// lined looks whether the line, or the head, is whole.
func (f *follower) lined() {
	if len(f.line) > maxHead {
		f.in = atEnd // net/http takes no such thing
	}
	if !bytes.HasSuffix(f.line, []byte("\n")) {
		return
	}
	text := strings.TrimRight(string(f.line), "\r\n")
	switch f.in {
	case inHead:
		if !bytes.HasSuffix(f.line, []byte("\r\n\r\n")) {
			return
		}
		f.begin(announced(f.line))
	case inSize:
		size, _, _ := strings.Cut(text, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 63)
		switch {
		case err != nil:
			f.in = atEnd
		case n == 0:
			f.in = inTrailer
		default:
			f.in, f.need = inChunk, n+2
		}
	case inTrailer:
		if text == "" {
			f.in = atEnd
		}
	}
	f.line = f.line[:0]
}

func (f *follower) begin(length int64, chunked bool) {
	switch {
	case chunked:
		f.in = inSize
	case length > 0:
		f.in, f.need = inBody, length
	default:
		f.in = atEnd
	}
}
