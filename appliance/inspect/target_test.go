package inspect

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	for _, c := range []struct {
		raw, path, escaped string // path "": refused
		slash              bool
	}{
		{"/", "/", "/", false},
		{"/a/b", "/a/b", "/a/b", false},
		{"/a//b///c/", "/a/b/c/", "/a/b/c/", false},
		{"//evil.example/x", "/evil.example/x", "/evil.example/x", false},
		{"/a/./b/../c", "/a/c", "/a/c", false},
		{"/a/b/..", "/a/", "/a/", false},
		{"/a/.", "/a/", "/a/", false},
		{"/a/..", "/", "/", false},
		{"/a/%2e%2E/b", "/b", "/b", false},
		{"/a/%2e/b", "/a/b", "/a/b", false},
		{"/%61dmin", "/admin", "/admin", false},
		{"/a%20b", "/a b", "/a%20b", false},
		{"/caf%c3%a9", "/café", "/caf%C3%A9", false},
		{"/100%25", "/100%", "/100%25", false},
		{"/a;v=1/b", "/a;v=1/b", "/a;v=1/b", false},
		{"/a|b", "/a|b", "/a%7Cb", false},
		{"/a+b", "/a+b", "/a+b", false},
		{"/a%3Fb", "/a?b", "/a%3Fb", false},
		{"/a%23b", "/a#b", "/a%23b", false},
		{"/...", "/...", "/...", false},
		{"/@scope%2fname", "/@scope%2Fname", "/@scope%2Fname", true},
		{"/%25%2Fx", "/%%2Fx", "/%25%2Fx", true},

		{"", "", "", false},
		{"a", "", "", false},
		{"/..", "", "", false},
		{"/a/../..", "", "", false},
		{"/%2e%2e/etc", "", "", false},
		{"/a%2fb", "", "", false},
		{"/a%5cb", "", "", false},
		{"/a\\..\\b", "", "", false},
		{"/a%00", "", "", false},
		{"/a%0d%0aHost:x", "", "", false},
		{"/a%7f", "", "", false},
		{"/%252e%252e/x", "", "", false},
		{"/%252f", "", "", true},
		{"/%c0%af", "", "", false},
		{"/%c0%ae%c0%ae/", "", "", false},
		{"/%e0%80%af", "", "", false},
		{"/%ff", "", "", false},
		{"/%u002f", "", "", false},
		{"/%2", "", "", false},
		{"/%zz", "", "", false},
		{"/..;/manager", "", "", false},
		{"/..;a=b/manager", "", "", false},
		{"/%2e%2e;/manager", "", "", false},
		{"/.;/x", "", "", false},
		{"/a b", "", "", false},
		{"/a#b", "", "", false},
		{"/é", "", "", false},
		{"/a\tb", "", "", false},
		{"/..%2fx", "", "", true},
		{"/a%2f..%2fx", "", "", true},
		{"/a%2f%2e%2e", "", "", true},
		{"/a%2f", "", "", true},
		{"/%2fa", "", "", true},
		{"/a%2f%2fb", "", "", true},
	} {
		path, escaped, bad := canonicalPath(c.raw, c.slash)
		if path != c.path || escaped != c.escaped || (bad == nil) != (c.path != "") {
			t.Errorf("%q (slash %v): got %q %q %v, want %q %q", c.raw, c.slash, path, escaped, bad, c.path, c.escaped)
		}
	}
}

func TestCanonicalQuery(t *testing.T) {
	for _, c := range []struct{ raw, want, key, val string }{
		{"", "", "", ""},
		{"a=b&c=d", "a=b&c=d", "c", "d"},
		{"a=b+c", "a=b%20c", "a", "b c"},
		{"%61=%62", "a=b", "a", "b"},
		{"a=1;b=2", "a=1%3Bb%3D2", "a", "1;b=2"},
		{"flag&a=1", "flag&a=1", "flag", ""},
		{"&&a=1&", "a=1", "a", "1"},
		{"u=http://x/?y", "u=http://x/?y", "u", "http://x/?y"},
		{"t=a%0Ab", "t=a%0Ab", "t", "a\nb"},
		{"p=%252e", "p=%252e", "p", "%2e"},
		{"b=%5C", "b=%5C", "b", `\`},
	} {
		got, vals, bad := canonicalQuery(c.raw)
		if bad != nil || got != c.want || c.key != "" && vals.Get(c.key) != c.val {
			t.Errorf("%q: got %q %v %v, want %q", c.raw, got, vals, bad, c.want)
		}
	}
	for _, raw := range []string{"a=%", "a=%0", "a=%ff", "a=%00", "a%0a=1", "a=b c", "a=\x01", "_method=DELETE", "_METHOD=DELETE", "%5fmethod=PUT", "X-HTTP-Method-Override=PUT", strings.Repeat("a&", maxPairs+1)} {
		if got, _, bad := canonicalQuery(raw); bad == nil {
			t.Errorf("%.40q passes as %.40q", raw, got)
		}
	}
}

func TestAuthority(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"EXAMPLE.com", "example.com"},
		{"example.com.", "example.com"},
		{"example.com:8443", "example.com:8443"},
		{"[2001:DB8::1]:80", "[2001:db8::1]:80"},
		{"[::1]", "[::1]"},
		{"bücher.example", "xn--bcher-kva.example"},
		{"[::ffff:10.0.0.1]:80", "10.0.0.1:80"},
	} {
		if got, bad := authority(c.in); bad != nil || got != c.want {
			t.Errorf("%q: got %q %v, want %q", c.in, got, bad, c.want)
		}
	}
	for _, in := range []string{
		"", ":80", "a:0", "a:65536", "a:080", "a:+80", "a:http", "user@a", "user:pw@a", "a b", "a/b", "a,b", "a\x00", "a..b", "127.1", "0x7f000001", "[::1%25eth0]", "[::1", "a:80:81", "a%2eb",
	} {
		if got, bad := authority(in); bad == nil {
			t.Errorf("%q passes as %q", in, got)
		}
	}
}

func TestReadTarget(t *testing.T) {
	for _, c := range []struct{ method, uri, host, path, query string }{
		{"GET", "/a?b=c", "h", "/a", "b=c"},
		{"GET", "/a?", "h", "/a", ""},
		{"GET", "http://h/a?b", "h", "/a", "b"},
		{"GET", "HTTPS://H?b", "h", "/", "b"},
		{"GET", "http://h", "h", "/", ""},
		{"OPTIONS", "*", "h", "*", ""},
		{"GET", "/a?b=/../c", "h", "/a", "b=/../c"},
		{"GET", "*", "h", "", ""},
		{"GET", "http://other/a", "h", "", ""},
		{"GET", "http://h@other/a", "h", "", ""},
		{"GET", "http://h:80/a", "h", "", ""},
		{"GET", "ftp://h/a", "h", "", ""},
		{"GET", "h:443", "h", "", ""},
		{"GET", "a", "h", "", ""},
		{"GET", "/" + strings.Repeat("a", maxTarget), "h", "", ""},
	} {
		got, bad := readTarget(&http.Request{Method: c.method, RequestURI: c.uri, Host: c.host}, false)
		if (bad == nil) != (c.path != "") || bad == nil && (got.path != c.path || got.query != c.query) {
			t.Errorf("%s %.60q: got %+v %v, want %q %q", c.method, c.uri, got, bad, c.path, c.query)
		}
	}
}

// Whatever passes has one spelling, which reads back as itself, and no second
// decoding, splitting or resolving changes it.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/a/%2e%2e/b?x=%3b;y", "/..;/x", "/%252e", "//a//b", "/%c0%af", "/@s%2fn", "/a?_method=x&a+b=%0a", "/%2F%2e%2E%2f", "/a%2f%2E", "/%25%2F2F"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, raw string, slash bool) {
		in := &http.Request{Method: "GET", RequestURI: raw, Host: "h"}
		if raw == "" {
			return
		}
		got, bad := readTarget(in, slash)
		if bad != nil {
			return
		}
		u, err := got.url()
		if err != nil {
			t.Fatalf("%q: %+v: %v", raw, got, err)
		}
		again, bad := readTarget(&http.Request{Method: "GET", RequestURI: u.RequestURI(), Host: "h"}, slash)
		if bad != nil || again.path != got.path || again.escaped != got.escaped || again.query != got.query || again.values.Encode() != got.values.Encode() {
			t.Fatalf("%q: %+v reads back as %+v %v", raw, got, again, bad)
		}
		checkPath(t, got, slash)
		want, err := url.ParseQuery(got.query)
		if err != nil || want.Encode() != got.values.Encode() {
			t.Fatalf("%q: query %q means %v, was judged as %v (%v)", raw, got.query, want, got.values, err)
		}
	})
}

// checkPath states the promise in other words than the code does.
func checkPath(t *testing.T, got target, slash bool) {
	t.Helper()
	if strings.ContainsAny(got.path, "\\\x00\r\n") || strings.Contains(got.path, "//") || !slash && strings.Contains(strings.ToLower(got.escaped), "%2f") {
		t.Fatalf("path %q from %q", got.path, got.escaped)
	}
	whole, err := url.PathUnescape(got.escaped)
	if err != nil {
		t.Fatal(err)
	}
	for s := range strings.SplitSeq(whole, "/") {
		if s == "." || s == ".." || strings.HasPrefix(s, "..;") {
			t.Fatalf("dot segment in %q", whole)
		}
	}
	if !slash {
		if twice, err := url.PathUnescape(whole); err == nil && twice != whole {
			t.Fatalf("%q decodes further to %q", whole, twice)
		}
		if whole != got.path {
			t.Fatalf("judged %q, the server reads %q", got.path, whole)
		}
	}
}
