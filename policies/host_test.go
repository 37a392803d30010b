package policies

import (
	"strings"
	"testing"
)

func TestNormalizeHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for in, want := range map[string]string{
		"example.com":                         "example.com",
		"EXAMPLE.com.":                        "example.com",
		"localhost":                           "localhost",
		"my_host":                             "my_host",
		"r3---sn-a.example":                   "r3---sn-a.example",
		"1and1.example":                       "1and1.example",
		"0x10.example":                        "0x10.example",
		"Bücher.example":                      "xn--bcher-kva.example",
		"XN--BCHER-KVA.example":               "xn--bcher-kva.example",
		"faß.example":                         "xn--fa-hia.example",
		"ｅｘａｍｐｌｅ.com":                         "example.com",
		"example。com":                         "example.com",
		"10.0.0.1":                            "10.0.0.1",
		"::1":                                 "::1",
		"[::1]":                               "::1",
		"2001:DB8:0:0::1":                     "2001:db8::1",
		"::ffff:10.0.0.1":                     "10.0.0.1",
		long + "." + long + "." + long + ".a": long + "." + long + "." + long + ".a",
	} {
		if got, err := NormalizeHost(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                 "empty",
		".":                "empty",
		"example.com..":    "empty",
		".example.com":     "empty",
		"a b":              `character ' '`,
		"a\x00b":           "",
		"a\nb":             "",
		"a/b":              `character '/'`,
		"a%2eb":            `character '%'`,
		"user@example.com": `character '@'`,
		"a*b":              `character '*'`,
		"example.com:443":  "",
		"-a.example":       "hyphen",
		"a-.example":       "hyphen",
		"127.1":            "number",
		"2130706433":       "number",
		"0x7f000001":       "number",
		"0177.0.0.01":      "number",
		"１２７.0.0.1.":       "number",
		"a.0x":             "number",
		"fe80::1%eth0":     "zone",
		"[10.0.0.1]":       "brackets",
		"[::1":             "brackets",
		"xn--a.example":    "",
		"xn--.example":     "",
		"ℷp":               "", // found by FuzzNormalizeHost: xn--p-3hc breaks the Bidi rule
		"\xff.example":     "",
		long + "a.example": "63",
		long + "." + long + "." + long + "." + long: "253",
		strings.Repeat("a", 5000):                   "5000 bytes",
	} {
		got, err := NormalizeHost(in)
		if err == nil || got != "" || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "got ") {
			t.Errorf("%q: got %q, %v; want an error with %q", in, got, err, want)
		}
	}
}

// What NormalizeHost accepts is its own normal form, and holds nothing else
// than a host may.
func FuzzNormalizeHost(f *testing.F) {
	for _, s := range []string{"Example.COM.", "bücher.example", "::ffff:1.2.3.4", "127.1", "xn--fa-hia.example", "a\u00adb", "[::1]", "ℷp", "ⅷ.example", "۱.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := NormalizeHost(s)
		if err != nil {
			return
		}
		twice, err := NormalizeHost(once)
		if err != nil || once != twice {
			t.Fatalf("%q → %q → %q, %v", s, once, twice, err)
		}
		if _, addr := isAddr(once); !addr && strings.Trim(once, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			t.Fatalf("%q → %q", s, once)
		}
	})
}

// The short way for plain names gives what the mapping gives.
func TestPlainName(t *testing.T) {
	for _, name := range []string{"a", "api.example.com", "1.a", "a--b.example", "ab--c.example", "_x.example", "a-.b", "-a.b", "a..b", "0a.9z", "a_b", strings.Repeat("a", 70)} {
		if !plainName(name) {
			t.Errorf("%q is not taken for plain", name)
		}
		if got, err := ascii(name); err == nil && got != name {
			t.Errorf("%q maps to %q", name, got)
		} else if err != nil && checkName(name) == nil {
			t.Errorf("%q is refused by the mapping only: %v", name, err)
		}
	}
	for _, name := range []string{"A", "xn--bcher-kva", "ü", "a b", "a%"} {
		if plainName(name) {
			t.Errorf("%q is taken for plain", name)
		}
	}
}
