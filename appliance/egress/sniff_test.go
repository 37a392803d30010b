package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// shell starts bash in the sandbox's namespace.
func shell(t *testing.T, l *lab, ctx context.Context, script string) *exec.Cmd {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.CommandContext(ctx, bash, "-c", script)
	if err := within(l.ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// The parser agrees with crypto/tls about real hellos, whole, in pieces and
// spread over records.
func TestClientHello(t *testing.T) {
	for _, name := range []string{"a.example", "x", strings.Repeat("a.", 100) + "example", "192.0.2.1"} {
		b := hello(t, name)
		want := name
		if net.ParseIP(name) != nil {
			want = ""
		}
		got, done, err := clientHello(b)
		if got.name != want || got.ech || !done || err != nil {
			t.Errorf("%q: got %v %v %v", name, got, done, err)
		}
		for i := range b {
			if _, done, err := clientHello(b[:i]); done || err != nil {
				t.Fatalf("%q: the first %d bytes: %v %v", name, i, done, err)
			}
		}
		var split []byte
		for msg := b[recordHeaderBytes:]; len(msg) > 0; {
			n := min(7, len(msg))
			split = append(append(split, 22, 3, 1, 0, byte(n)), msg[:n]...)
			msg = msg[n:]
		}
		if got, done, err := clientHello(split); got.name != want || !done || err != nil {
			t.Errorf("%q in records of 7: got %v %v %v", name, got, done, err)
		}
	}
}

func TestClientHelloRefuses(t *testing.T) {
	b := hello(t, "a.example")
	at := bytes.Index(b, []byte("\x00\x00\x00\x0e\x00\x0c\x00\x00\x09a.example"))
	if at < 0 {
		t.Fatal("no server_name extension in the hello")
	}
	for name, edit := range map[string]func([]byte){
		"list length": func(b []byte) { b[at+5]++ }, "name type": func(b []byte) { b[at+6] = 1 }, "name length": func(b []byte) { b[at+8]-- },
		"extension length": func(b []byte) { b[at+3]++ }, "session length": func(b []byte) { b[43] = 255 }, "not a hello": func(b []byte) { b[5] = 2 },
		"message length": func(b []byte) { b[6] = 1 }, "record length": func(b []byte) { b[3], b[4] = 0xff, 0xff },
	} {
		c := bytes.Clone(b)
		edit(c)
		if got, done, err := clientHello(c); err == nil && done && got.name == "a.example" {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
	// The extension twice: two readers could take different ones.
	ext := b[at : at+18]
	c := append(bytes.Clone(b[:at]), append(bytes.Clone(ext), b[at:]...)...)
	grow := func(i int) { n := int(c[i])<<8 + int(c[i+1]) + 18; c[i], c[i+1] = byte(n>>8), byte(n) }
	grow(3)
	grow(7)
	exts := 44 + int(b[43]) // past the session id, then the suites and the compressions
	exts += 2 + int(b[exts])<<8 + int(b[exts+1])
	exts += 1 + int(b[exts])
	grow(exts)
	if got, done, err := clientHello(c); err == nil {
		t.Errorf("twice: got %v %v", got, done)
	}
}

// canned is a connection that reads from memory and forgets what is written.
type canned struct {
	net.Conn
	*bytes.Reader
}

func (c canned) Read(b []byte) (int, error)     { return c.Reader.Read(b) }
func (canned) Write(b []byte) (int, error)      { return len(b), nil }
func (canned) SetWriteDeadline(time.Time) error { return nil }
func (canned) Close() error                     { return nil }

// refTLS asks crypto/tls which server name it reads.
func refTLS(b []byte) (name string, ok bool) {
	cfg := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, context.Canceled
	}}
	_ = tls.Server(canned{Reader: bytes.NewReader(b)}, cfg).Handshake() // fails by design
	return name, ok
}

// Whatever crypto/tls reads as a hello with a name, we read the same name or refuse.
func FuzzHello(f *testing.F) {
	f.Add(hello(f, "a.example"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add(bytes.Repeat([]byte("A"), 20))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, done := classify(b)
		for i := range min(len(b), 64) { // a shorter prefix never says something else for certain
			if p, sure := classify(b[:i]); sure && (!done || p.kind != s.kind || p.host != s.host || (p.bad == nil) != (s.bad == nil)) {
				t.Fatalf("%q says %+v, its first %d bytes %+v", b, s, i, p)
			}
		}
		if s.kind != tlsHello || !done || s.bad != nil {
			return
		}
		if want, ok := refTLS(b); ok && !strings.EqualFold(strings.TrimSuffix(s.host, "."), strings.TrimSuffix(want, ".")) {
			t.Fatalf("we read %q, crypto/tls %q", s.host, want)
		}
	})
}
