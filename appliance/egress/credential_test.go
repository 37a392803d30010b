package egress

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// A server keeps what it was sent and shows it to a later request, which carries no
// placeholder and goes elsewhere: to a path, or a host, without credentials.
func TestStoredCredential(t *testing.T) {
	var mu sync.Mutex
	kept := http.Header{}
	l, _ := credentialLab(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPut {
			kept = r.Header.Clone()
			return
		}
		note := kept.Get("X-Amz-Meta-Note") + kept.Get("Authorization")
		w.Header().Set("X-Amz-Meta-Note", note)
		w.Header().Set("X-"+strings.TrimPrefix(note, "Basic "), "1")
		if r.URL.Path == "/packed" && r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header()["Content-Encoding"] = []string{"", "gzip"}
			io.WriteString(w, zipped("note: "+note))
			return
		}
		fmt.Fprintf(w, "note: %s", note)
	})
	l.withCredentials(policies.Credential{Name: "key"})
	ph := l.proxy.Placeholder("a1", "key")
	for name, head := range map[string][]string{
		"as it is": {"X-Amz-Meta-Note", ph},
		"Basic":    {"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("a:"+ph))},
	} {
		if st, body, _ := do(t, l.client(true), "PUT", "https://a.example/note", "x", head...); st != 200 {
			t.Fatalf("%s: put: %d %s", name, st, body)
		}
		for _, x := range []struct {
			path string
			head []string
		}{{"/note", nil}, {"/open/note", nil}, {"/packed", []string{"Accept-Encoding", "br, gzip"}}, {"/packed", []string{"Accept-Encoding", "gzip", "Range", "bytes=0-9"}}} {
			st, body, res := do(t, l.client(true), "GET", "https://a.example"+x.path, "", x.head...)
			all := body + fmt.Sprint(res.Header)
			leaked := strings.Contains(strings.ToLower(all), secret)
			for i := range 3 { // any six bytes of it
				b := base64.StdEncoding.EncodeToString([]byte("a: "[:i] + secret))
				leaked = leaked || strings.Contains(all, b[8:16])
			}
			if st != 200 || leaked || !strings.Contains(body, "note: ") {
				t.Errorf("%s: %s %q: got %d %s", name, x.path, x.head, st, all)
			}
		}
	}
}

// What is packed in another way than asked for can't be masked.
func TestPackedAnswer(t *testing.T) {
	l, _ := credentialLab(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Encoding"] = r.URL.Query()["as"]
		if r.URL.Query().Has("part") {
			w.WriteHeader(http.StatusPartialContent)
		}
		io.WriteString(w, zipped("hello"))
	})
	l.withCredentials(policies.Credential{Name: "key"})
	for q, want := range map[string]int{"?as=gzip": 200, "?as=identity&as=x-gzip": 200, "?as=br": 502, "?as=identity&as=br": 502, "?as=gzip&as=gzip": 502, "?as=gzip&part": 502} {
		st, body, _ := do(t, l.client(true), "GET", "https://a.example/"+q, "", "Accept-Encoding", "gzip")
		if st != want || want == 200 && body != "hello" || want != 200 && !strings.Contains(body, "net.credential") {
			t.Errorf("%s: got %d %q, want %d", q, st, body, want)
		}
	}
}

// socketLab has a server that answers the opening of a WebSocket as it likes.
func socketLab(t *testing.T, answer func(*http.Request) string) *lab {
	t.Helper()
	l, site := credentialLab(t, hello200)
	cert, ca := issue(t, "a.example")
	site.roots.AddCert(ca)
	l.serve(tlsRaw(cert, func(c net.Conn) {
		if q, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, answer(q))
			time.Sleep(300 * time.Millisecond)
		}
	}))
	r := ruleFor("websocket", policies.CallRule{Method: "GET"}, policies.CallRule{Frame: "*"})
	r.Credentials = []string{"key"}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pol = &policies.Policy{Name: "test", Credentials: []policies.Credential{{Name: "key"}}, Network: allow(r)}
	return l
}

// What a server repeats of a credential over a WebSocket, or in refusing one, is
// masked: in control frames, across the pieces that a long frame is sent on in.
func TestSocketCredential(t *testing.T) {
	accept := func(q *http.Request) string {
		return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" + "\r\n\r\n"
	}
	control := func(op byte) func(*http.Request) string {
		return func(q *http.Request) string {
			p := "\x0f\xa1bad token " + q.Header.Get("Authorization")
			return accept(q) + string([]byte{op, byte(len(p))}) + p
		}
	}
	packed := func(status, code string) func(*http.Request) string {
		return func(q *http.Request) string {
			b := zipped("bad token " + q.Header.Get("Authorization"))
			return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s", status, code, len(b), b)
		}
	}
	for name, x := range map[string]struct {
		answer func(*http.Request) string
		want   string
	}{
		"a close's reason": {control(0x88), "bad token Bearer ***"},
		"a ping":           {control(0x89), "bad token Bearer ***"},
		"a long frame": {func(q *http.Request) string {
			p := strings.Repeat("A", 32<<10-12) + q.Header.Get("Authorization") + "tail"
			return accept(q) + string(binary.BigEndian.AppendUint16([]byte{0x81, 126}, uint16(len(p)))) + p
		}, "***tail"},
		"a refusal in gzip":           {packed("401 Unauthorized", "gzip"), "bad token Bearer ***"},
		"a refusal, packed otherwise": {packed("401 Unauthorized", "br"), "net.credential"},
		"a part of a refusal in gzip": {packed("206 Partial Content", "gzip"), "net.credential"},
		"a refusal, packed two times": {packed("401 Unauthorized", "gzip, gzip"), "net.credential"},
	} {
		l := socketLab(t, x.answer)
		c := l.terminated("http/1.1")
		fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer %s\r\n\r\n", l.proxy.Placeholder("a1", "key"))
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		b, _ := io.ReadAll(c)
		got := string(b)
		if _, body, ok := strings.Cut(got, "\r\n\r\n"); ok {
			u := &unzipped{ReadCloser: io.NopCloser(strings.NewReader(body))}
			if b, err := io.ReadAll(u); err == nil {
				got += string(b)
			}
		}
		if strings.Contains(got, secret) || !strings.Contains(got, x.want) {
			t.Errorf("%s: got %q, want %q", name, got[max(0, len(got)-400):], x.want)
		}
	}
}

// A server that fills the head of its answer with short lines makes net/http hold
// many times as much. It is cut off before that is more than the room says.
func TestAnswerHead(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\n")
	for i := 0; b.Len() < answerHead-(8<<10); i++ {
		fmt.Fprintf(&b, "%x:\r\n", i)
	}
	for name, r := range map[string]policies.HostRule{"plain": rule("a.example", 80), "inspected": {Host: "a.example", Ports: []int{80}, Protocol: "http", Access: "full"}} {
		l := newLab(t, steered(steer(t)))
		done := make(chan bool)
		var sent sync.WaitGroup
		l.serve(func(c net.Conn) {
			defer sent.Done()
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = c.Write(b.Bytes())
			<-done
		})
		l.network(allow(r))
		const n = 20
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		sent.Add(n)
		for range n {
			fmt.Fprint(l.connect("tcp", "a.example:80"), "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}
		time.Sleep(2 * time.Second)
		// Goroutines and buffers of a connection are some 100 KiB of it.
		if each := (heap() - min(before, heap())) / n; each > 600<<10 {
			t.Errorf("%s: %d KiB for each answer that does not end", name, each>>10)
		}
		close(done)
		sent.Wait()
		l.serve(func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = c.Write(append(b.Bytes(), "x: "+strings.Repeat("y", 16<<10)+"\r\n\r\n"...))
		})
		if st, body := l.get("a.example:80", "a.example"); st != 502 {
			t.Errorf("%s: a head of %d bytes: got %d %.100s", name, b.Len()+16<<10, st, body)
		}
	}
}

// Plain requests take of the sandbox's room, as inspected ones do.
func TestPlainRoom(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.serve(httpOK)
	l.network(allow(rule("a.example", 80)))
	l.proxy.mu.Lock()
	var r *room
	for b := range l.proxy.boxes {
		r = b.room
	}
	l.proxy.mu.Unlock()
	if !r.calls.TryAcquire(maxCalls) {
		t.Fatal("the room is taken")
	}
	if st, body := l.get("a.example:80", "a.example"); st != 503 || !strings.Contains(body, "http.busy") {
		t.Errorf("got %d %s", st, body)
	}
	r.calls.Release(maxCalls)
	if st, body := l.get("a.example:80", "a.example"); st != 200 {
		t.Errorf("got %d %s", st, body)
	}
	eventually(t, "its room is free", func() bool { return r.calls.TryAcquire(maxCalls) })
}

// allowedIPs are the only networks that the name may lead to by the rule that lists
// them: also when an operator lets the connection in, beside a wider rule, and for
// a request's own rule.
func TestAllowedIPsOfTheRule(t *testing.T) {
	bound := func(r policies.HostRule) policies.HostRule {
		r.Host, r.Ports, r.AllowedIPs = "a.example", []int{80}, []string{"198.51.100.0/24"}
		return r
	}
	wide := policies.HostRule{Host: "a.example", Ports: []int{80}}
	inspected := policies.HostRule{Protocol: "http", Access: "full"}
	below := inspected
	below.Path = "/below/**"
	git := policies.HostRule{Binaries: []string{"/usr/bin/git"}}
	top := wide
	top.Protocol, top.Access = "http", "full"
	for name, x := range map[string]struct {
		n       policies.Network
		path    string
		approve bool
		leads   string
		want    bool
	}{
		"approved":                     {policies.Network{Default: policies.Hold, Allow: []policies.HostRule{bound(git)}}, "/", true, "203.0.113.7", false},
		"approved, within":             {policies.Network{Default: policies.Hold, Allow: []policies.HostRule{bound(git)}}, "/", true, "198.51.100.7", true},
		"beside a wider rule":          {allow(bound(inspected), wide), "/", false, "203.0.113.7", false},
		"beside a wider rule, within":  {allow(bound(inspected), wide), "/", false, "198.51.100.7", true},
		"a request's own":              {allow(top, bound(below)), "/below/x", false, "203.0.113.7", false},
		"a request's own, within":      {allow(top, bound(below)), "/below/x", false, "198.51.100.7", true},
		"another request than the own": {allow(top, bound(below)), "/x", false, "203.0.113.7", true},
	} {
		l := newLab(t, steered(steer(t)))
		l.serve(httpOK)
		l.network(x.n)
		l.resolves("a.example", x.leads)
		c := l.connect("tcp", "a.example:80")
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", x.path)
		if x.approve {
			if err := l.answer(one(t, l), true, holds.Session); err != nil {
				t.Fatal(err)
			}
		}
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		b, _ := io.ReadAll(c)
		_, dialed := l.outside()
		if got := contains(dialed, x.leads); got != x.want || x.want != strings.Contains(string(b), "200 OK") {
			t.Errorf("%s: dialed %v, answer %.200q", name, dialed, b)
		}
		if told := l.book.find(func(r ledger.Record) bool { return r.Reason == policies.ReasonAddress }); len(told) == 0 != x.want {
			t.Errorf("%s: records %+v", name, told)
		}
	}
}
