package inspect

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestHead(t *testing.T) {
	const start = "POST /x HTTP/1.1\r\nHost: a\r\n"
	for _, ok := range []string{
		start + "\r\n",
		start + "Content-Length: 5\r\n\r\n",
		start + "Transfer-Encoding: chunked\r\n\r\n",
		start + "Transfer-Encoding: Chunked \r\n\r\n",
		start + "X-Empty:\r\nX-Tab: a\tb\r\nX-Latin: \xe9\r\n\r\n",
		"GET http://a/x HTTP/1.0\r\nhost: a\r\n\r\n",
	} {
		if err := Head([]byte(ok)); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for name, raw := range map[string]string{
		"no end":                  start,
		"bare line feeds":         "GET / HTTP/1.1\nHost: a\n\n",
		"one bare line feed":      "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
		"bare carriage return":    "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
		"leading empty line":      "\r\n" + start + "\r\n",
		"folded line":             start + "X: a\r\n b\r\n\r\n",
		"folded by tab":           start + "X: a\r\n\tb\r\n\r\n",
		"blank before colon":      start + "Content-Length : 5\r\n\r\n",
		"blank before name":       "POST / HTTP/1.1\r\n Host: a\r\n\r\n",
		"no colon":                start + "nonsense\r\n\r\n",
		"empty name":              start + ": x\r\n\r\n",
		"NUL in a value":          start + "X: a\x00b\r\n\r\n",
		"NUL in a name":           start + "X\x00: b\r\n\r\n",
		"two requests":            start + "\r\n" + start + "\r\n",
		"no host":                 "GET / HTTP/1.1\r\n\r\n",
		"two hosts":               start + "Host: b\r\n\r\n",
		"both lengths":            start + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
		"two lengths":             start + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"two equal lengths":       start + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
		"list of lengths":         start + "Content-Length: 5, 5\r\n\r\n",
		"signed length":           start + "Content-Length: +5\r\n\r\n",
		"negative length":         start + "Content-Length: -5\r\n\r\n",
		"hexadecimal length":      start + "Content-Length: 0x5\r\n\r\n",
		"empty length":            start + "Content-Length:\r\n\r\n",
		"huge length":             start + "Content-Length: 99999999999999999999\r\n\r\n",
		"underscored length":      start + "Content-Length: 1_0\r\n\r\n",
		"gzip, chunked":           start + "Transfer-Encoding: gzip, chunked\r\n\r\n",
		"identity":                start + "Transfer-Encoding: identity\r\n\r\n",
		"xchunked":                start + "Transfer-Encoding: xchunked\r\n\r\n",
		"chunked twice":           start + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"chunked, vertical tab":   start + "Transfer-Encoding: \x0bchunked\r\n\r\n",
		"quoted chunked":          start + "Transfer-Encoding: \"chunked\"\r\n\r\n",
		"chunked in 1.0":          "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.2":                "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"HTTP/2.0":                "PRI * HTTP/2.0\r\nHost: a\r\n\r\n",
		"HTTP/0.9":                "GET /\r\n\r\n",
		"lower version":           "GET / http/1.1\r\nHost: a\r\n\r\n",
		"lower method":            "get / HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT":                 "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
		"TRACE":                   "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
		"target of another host":  "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"target with a user":      "GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"target of no kind":       "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
		"two blanks":              "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"tab for blank":           "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"blank in target":         "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"raw UTF-8 in target":     "GET /é HTTP/1.1\r\nHost: a\r\n\r\n",
		"blank after the version": "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
		"many lines":              start + strings.Repeat("X: y\r\n", maxLines) + "\r\n",
		"long":                    start + "X: " + strings.Repeat("y", maxHead) + "\r\n\r\n",
	} {
		if err := Head([]byte(raw)); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

// net/http reads what Head and Request let through as they do: the same host,
// one body length, and written anew it is one request.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x?y=z HTTP/1.1\r\nHost: A:80\r\nContent-Length: 3\r\nConnection: close, te\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
		"POST http://a/ HTTP/1.0\r\nHost: a\r\nContent-Length : 1\r\n\r\nGET /b", "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: b\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		end := bytes.Index(raw, []byte("\r\n\r\n"))
		if end < 0 || Head(raw[:end+4]) != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		q, msgs, err := Request(r, Options{})
		if err != nil {
			return
		}
		if len(msgs) != 1 {
			t.Fatal(msgs)
		}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		q.Body = io.NopCloser(bytes.NewReader(body))
		var out bytes.Buffer
		if err := q.Write(&out); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		in := bufio.NewReader(&out)
		sent := out.String()
		back, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q became %q: %v", raw, sent, err)
		}
		got, err := io.ReadAll(back.Body)
		if err != nil || !bytes.Equal(got, body) || in.Buffered() > 0 || out.Len() > 0 {
			t.Fatalf("%q became %q: body %q, want %q; left %d (%v)", raw, sent, got, body, in.Buffered()+out.Len(), err)
		}
		if back.Method != msgs[0].Method || back.URL.Path != msgs[0].Path && msgs[0].Path != "*" || back.Host != q.Host || back.URL.RawQuery != q.URL.RawQuery {
			t.Fatalf("%q became %q: judged %+v", raw, sent, msgs[0])
		}
	})
}
