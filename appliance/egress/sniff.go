package egress

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/policies"
)

// kind is what a client's first bytes are.
type kind int

const (
	silent kind = iota // nothing came
	tlsHello
	http1
	other
)

// seen is what the first bytes say.
type seen struct {
	kind kind
	host string // SNI or Host, as sent; "" if absent
	ech  bool   // TLS: an encrypted hello is inside
	bad  error  // the greeting is not well formed
	form error  // HTTP: the head can be read in two ways
}

const (
	maxPeek  = 32 << 10         // bytes of a greeting; a ClientHello with post-quantum keys has 2 KB
	greeting = 10 * time.Second // for a greeting to be complete once it began
)

// A client that sends its greeting in single bytes has all of them looked at
// each time: after so many times not at once.
const (
	maxWakes  = 100
	wakeEvery = 5 * time.Millisecond
)

var errGreeting = errors.New("the first bytes are an incomplete TLS or HTTP greeting or line of text, or one longer than 32 KiB")

// patience is how long a client may be silent before that means something.
func (c *conn) patience() time.Duration {
	if _, rule := c.metered(); c.port == 80 || c.port == 443 || inspected(rule) {
		return 30 * time.Second
	}
	return 300 * time.Millisecond
}

// sniff looks at the first bytes without taking them. wait bounds the silence
// before them, 0 means for ever.
func (c *conn) sniff(wait time.Duration) (seen, error) {
	b, err := peek(c.in, wait, func(b []byte) bool { return len(b) > 0 })
	if len(b) == 0 {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		return seen{}, err
	}
	var s seen
	done := false
	_, err = peek(c.in, greeting, func(b []byte) bool {
		s, done = classify(b)
		return done
	})
	if !done {
		return s, errGreeting
	}
	return s, err
}

// classify is pure: what the bytes are, and whether that is certain yet.
func classify(b []byte) (seen, bool) {
	if len(b) == 0 {
		return seen{}, false
	}
	if b[0] == recordHandshake {
		if len(b) > 1 && b[1] != 3 {
			return seen{kind: other}, true
		}
		g, done, err := clientHello(b)
		return seen{kind: tlsHello, host: g.name, ech: g.ech, bad: err}, done
	}
	return classifyHTTP(b)
}

// blank is what some servers skip before a request or take between its parts.
const blank = " \t\v\f\r"

// classifyHTTP takes for HTTP whatever some server could: any first line with
// " HTTP/" in it. What is not exactly right is then refused, for a server may
// read more into it than the lines here do. A first line that is text has to
// end before it is known.
func classifyHTTP(b []byte) (seen, bool) {
	text := bytes.TrimLeft(b, blank+"\n")
	if len(text) == 0 {
		return seen{}, false
	}
	if !methodByte(text[0]) {
		return seen{kind: other}, true
	}
	line, rest, ok := bytes.Cut(text, []byte("\n"))
	if !ok {
		return seen{kind: other}, false
	}
	if !requestLike(line) {
		return seen{kind: other}, true
	}
	if err := requestLine(string(line)); err != nil || len(text) < len(b) {
		return seen{kind: http1, bad: errRequest}, true
	}
	line = line[:len(line)-1]
	end := bytes.Index(rest, []byte("\r\n\r\n"))
	if bytes.HasPrefix(rest, []byte("\r\n")) {
		end = 0 // no header at all
	} else if end < 0 {
		// A blank line in any other form: not ours to interpret.
		if bytes.Contains(rest, []byte("\n\n")) || bytes.Contains(rest, []byte("\n\r\n")) {
			return seen{kind: http1, bad: errors.New("header lines do not end in CR LF")}, true
		}
		return seen{kind: http1}, false
	}
	host, err := httpHost(string(line), string(rest[:end]))
	whole := b[:len(b)-len(rest)+end+len("\r\n\r\n")]
	if bytes.HasPrefix(rest, []byte("\r\n")) {
		whole = b[:len(b)-len(rest)+len("\r\n")]
	}
	return seen{kind: http1, host: host, bad: err, form: inspect.Framing(whole)}, true
}

// methodByte says whether c may be part of a method: a tchar of RFC 9110, 5.6.2.
func methodByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// requestLike finds a blank and "HTTP/", in any case.
func requestLike(line []byte) bool {
	const mark = "http/"
	low := bytes.ToLower(line)
	for i := 0; ; i += len(mark) {
		n := bytes.Index(low[i:], []byte(mark))
		if n < 0 {
			return false
		}
		if i += n; i > 0 && strings.IndexByte(blank, low[i-1]) >= 0 {
			return true
		}
	}
}

var errRequest = errors.New("the request does not begin with METHOD target HTTP/1.1, or 1.0, and CR LF")

// requestLine wants the one exact form. CONNECT is for proxies.
func requestLine(line string) error {
	f := strings.Split(line, " ")
	if len(f) != 3 || f[2] != "HTTP/1.1\r" && f[2] != "HTTP/1.0\r" || f[0] == "CONNECT" {
		return errRequest
	}
	method := strings.Trim(f[0], "ABCDEFGHIJKLMNOPQRSTUVWXYZ-")
	target := strings.ContainsFunc(f[1], func(r rune) bool { return r <= ' ' || r >= 0x7f })
	if method != "" || f[0] == "" || f[1] == "" || target {
		return errRequest
	}
	return nil
}

// httpHost returns the one host that a request names.
func httpHost(line, header string) (string, error) {
	host, n := "", 0
	for _, l := range strings.Split(header, "\r\n") {
		name, v, ok := strings.Cut(l, ":")
		if l == "" {
			continue
		}
		if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(l, "\r\n\x00") {
			return "", fmt.Errorf("header line %.40q is not well formed", l)
		}
		if strings.EqualFold(name, "Host") {
			host, n = strings.Trim(v, " \t"), n+1
		}
	}
	if n != 1 {
		return "", fmt.Errorf("got %d Host headers, want one", n)
	}
	return host, targetAgrees(strings.Fields(line)[1], host)
}

// targetAgrees refuses a request target that names another host than Host.
func targetAgrees(target, host string) error {
	if strings.HasPrefix(target, "/") || target == "*" {
		return nil
	}
	_, rest, ok := strings.Cut(target, "://")
	if !ok {
		return errors.New("the request target is neither a path nor a URL")
	}
	auth, _, _ := strings.Cut(rest, "/")
	auth, _, _ = strings.Cut(auth, "?")
	if !strings.EqualFold(auth, host) {
		return errors.New("the request target and Host differ")
	}
	return nil
}

// same compares what the client says inside its connection with the name that
// the connection was made to.
func (c *conn) same(s seen) *refusal {
	want := map[int]kind{80: http1, 443: tlsHello}[c.port]
	_, rule := c.metered()
	deep := inspected(rule)
	switch {
	case deep && s.kind != tlsHello && s.kind != http1:
		return refuse("net.protocol", "speak "+rule.Protocol+" over HTTP", "the rule for port %d has its connections inspected; they begin with TLS or an HTTP/1 request", c.port)
	case deep && s.kind == tlsHello && !rule.Inspect:
		return refuse("net.uninspected", "ask the operator for inspect: true in the rule", "the rule for port %d wants to see %s, and TLS hides it", c.port, rule.Protocol)
	case !c.name:
		return nil
	case want != silent && s.kind == silent:
		return refuse("net.silent", "send the request at once", "nothing was sent on port %d for %v", c.port, c.patience())
	case s.kind != silent && want != silent && s.kind != want:
		return refuse("net.protocol", "use https on port 443, http on port 80", "port %d takes only %s here", c.port, map[kind]string{tlsHello: "TLS", http1: "HTTP/1"}[want])
	case s.kind == tlsHello && s.ech && !deep && s.bad == nil:
		return refuse("net.ech", "switch encrypted client hellos off, or ask the operator for inspect: true in the rule", "the client hello holds another, encrypted one, which may name another host than %s", c.host)
	case s.kind == tlsHello:
		return c.match("net.sni_mismatch", "the server name (SNI)", s.host, s.bad)
	case s.kind == http1 && s.bad == nil && s.form != nil && !deep: // where it is inspected, each head is looked at as it comes
		return refusedBy(s.form)
	case s.kind == http1:
		host := s.host
		if h, port, err := net.SplitHostPort(host); err == nil && port == strconv.Itoa(c.port) {
			host = h
		}
		return c.match("net.host_mismatch", "the Host header", host, s.bad)
	}
	return nil
}

// match compares got with the connection's name after normalizing it, as the
// policy did with the name.
func (c *conn) match(reason, what, got string, bad error) *refusal {
	name, err := policies.NormalizeHost(got)
	if bad == nil && err == nil && name == c.host && ascii(got) {
		return nil
	}
	detail := fmt.Sprintf("%s is %.80q", what, got)
	if got == "" {
		detail = what + " is missing"
	}
	if bad != nil {
		detail = bad.Error()
	}
	return refuse(reason, "connect to the host that the request is for", "made to %s, but %s", c.host, detail)
}

// ascii: what this side folds to the same name, a server would not.
func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// peek shows what has arrived to enough, without taking it, until enough is
// satisfied, maxPeek is reached, the client ends, or wait is over (0: never).
// It returns what was there last.
func peek(c *net.TCPConn, wait time.Duration, enough func([]byte) bool) ([]byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var until time.Time
	if wait > 0 {
		until = time.Now().Add(wait)
	}
	if err := c.SetReadDeadline(until); err != nil {
		return nil, err
	}
	defer c.SetReadDeadline(time.Time{})
	buf := make([]byte, 4<<10)
	n, bad, wakes := 0, error(nil), 0
	err = raw.Read(func(fd uintptr) bool {
		if wakes++; wakes > maxWakes {
			time.Sleep(wakeEvery)
		}
		for {
			ended := hungUp(int(fd)) // asked first: what came before the end is then seen below
			n, _, bad = unix.Recvfrom(int(fd), buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if bad == unix.EAGAIN || bad == unix.EINTR {
				n, bad = 0, nil
				return false
			}
			if bad != nil || n == 0 || enough(buf[:n]) || ended || n >= maxPeek {
				return true
			}
			if n < len(buf) {
				return false // woken again when more arrives
			}
			buf = make([]byte, min(2*len(buf), maxPeek))
		}
	})
	return buf[:max(n, 0)], errors.Join(err, bad)
}

// hungUp says whether the client has ended its side.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

// onHangUp calls f when the client ends its side, until stop is called.
func onHangUp(c *net.TCPConn, f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := c.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Read(func(fd uintptr) bool { // ends by the deadline that stop sets
			if hungUp(int(fd)) {
				f()
				return true
			}
			return false
		})
	}()
	return func() {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = c.SetReadDeadline(time.Time{})
	}
}
