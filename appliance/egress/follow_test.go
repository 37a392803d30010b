package egress

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/clawbox/clawbox/appliance/inspect"
)

// The follower finds the end of a request where net/http finds it.
func FuzzFollower(f *testing.F) {
	const host = "Host: a\r\n"
	for _, s := range []string{
		"GET / HTTP/1.1\r\n" + host + "\r\n", "GET / HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcd", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\nx",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n00\r\n\r\n",
	} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		n := headEnd(in)
		if n < 0 || inspect.Framing(in[:n]) != nil {
			return
		}
		src := bytes.NewReader(in)
		br := bufio.NewReader(src)
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, q.Body); err != nil {
			return // no end to compare
		}
		rest := br.Buffered() + src.Len()
		var fo follower
		for b := in; len(b) > 0; {
			k := min(len(b), max(1, size%10))
			fo.feed(b[:k])
			b = b[k:]
		}
		if fo.in != atEnd || fo.more.Load() != (rest > 0) {
			t.Fatalf("%q: stage %d, more %v; net/http leaves %d bytes", in, fo.in, fo.more.Load(), rest)
		}
	})
}
