package deb

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a Debian version: [epoch:]upstream[-revision] (Debian Policy
// 5.6.12, deb-version(7)).
type Version struct {
	Epoch              int
	Upstream, Revision string
	text               string
}

func (v Version) String() string { return v.text }

// ParseVersion refuses what dpkg refuses.
func ParseVersion(s string) (Version, error) {
	v := Version{text: s, Upstream: s}
	bad := func(why string) (Version, error) {
		return Version{}, fmt.Errorf("version %.80q: %s; want [epoch:]upstream[-revision]", s, why)
	}
	if e, rest, ok := strings.Cut(s, ":"); ok {
		n, err := strconv.ParseUint(e, 10, 31)
		if err != nil {
			return bad("the epoch is no number")
		}
		v.Epoch, v.Upstream = int(n), rest
	}
	if i := strings.LastIndexByte(v.Upstream, '-'); i >= 0 {
		v.Upstream, v.Revision = v.Upstream[:i], v.Upstream[i+1:]
		if v.Revision == "" {
			return bad("the revision is empty")
		}
	}
	if v.Upstream == "" || len(s) > 256 {
		return bad("it is empty or too long")
	}
	if v.Upstream[0] < '0' || v.Upstream[0] > '9' {
		return bad("it does not begin with a digit")
	}
	if strings.ContainsFunc(v.Upstream, func(r rune) bool { return !alnum(r) && !strings.ContainsRune(".+-~:", r) }) ||
		strings.ContainsFunc(v.Revision, func(r rune) bool { return !alnum(r) && !strings.ContainsRune(".+~", r) }) {
		return bad("it holds a character that no version has")
	}
	return v, nil
}

func alnum(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// Compare is -1, 0 or 1 as v is older than, the same as or newer than o.
func (v Version) Compare(o Version) int {
	if v.Epoch != o.Epoch {
		return sign(v.Epoch - o.Epoch)
	}
	if c := compare(v.Upstream, o.Upstream); c != 0 {
		return c
	}
	return compare(v.Revision, o.Revision)
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// compare walks both strings in turns: what is no digit by weight, then a
// number by value.
func compare(a, b string) int {
	for a != "" || b != "" {
		for startsOther(a) || startsOther(b) {
			if c := weight(a) - weight(b); c != 0 {
				return sign(c)
			}
			a, b = rest(a), rest(b)
		}
		var m, n string
		m, a = digits(a)
		n, b = digits(b)
		if len(m) != len(n) {
			return sign(len(m) - len(n))
		}
		if c := strings.Compare(m, n); c != 0 {
			return c
		}
	}
	return 0
}

func startsOther(s string) bool { return s != "" && !digit(s[0]) }

func digit(c byte) bool { return c >= '0' && c <= '9' }

// weight orders the first byte: '~' before the end, the end and digits before
// letters, letters before everything else.
func weight(s string) int {
	switch {
	case s == "" || digit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case alnum(rune(s[0])):
		return int(s[0])
	}
	return int(s[0]) + 256
}

func rest(s string) string {
	if startsOther(s) {
		return s[1:]
	}
	return s
}

// digits cuts off a number, without leading zeros.
func digits(s string) (num, rest string) {
	i := 0
	for i < len(s) && digit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}
