package policies

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Two readings of one pattern language. "*" is a run of characters, "**" too,
// "?" is one character; everything else is itself.
//
// narrow is how allow rules read: exact case, and a "*" or "?" stays within
// one segment, so that "/repos/*" is one name below /repos.
//
// wide is how deny rules read: whatever a reader could have meant. Published
// languages disagree on whether a star crosses slashes, whether "/x/**" covers
// /x, whether "**/" may be empty and whether case counts; a denial that
// matched less than its reader expects would be an open door.

// narrow matches s against pattern; sep ends a "*" (0: nothing does).
func narrow(pattern, s string, sep rune) bool {
	if sep == 0 && simple(pattern, s) {
		return pieces(pattern, s)
	}
	return run(pattern, s, sep, exactly)
}

func exactly(a, b rune) bool { return a == b }

// wide matches names, values and methods.
func wide(pattern, s string) bool {
	if len(s) > longText && simple(pattern, s) {
		return pieces(folded(pattern), folded(s))
	}
	return run(pattern, s, 0, sameLetter)
}

// longText is where folding a whole text is cheaper than matching it letter by
// letter, in bytes. What an agent sends is megabytes at times.
const longText = 256

// simple says whether runs of any characters are all that a pattern has.
func simple(pattern, s string) bool {
	return !strings.Contains(pattern, "?") && utf8.ValidString(pattern) && utf8.ValidString(s)
}

// pieces matches what stands between the stars, each as early as it can.
func pieces(pattern, s string) bool {
	ps := strings.Split(pattern, "*")
	last := len(ps) - 1
	if last == 0 {
		return pattern == s
	}
	s, begins := strings.CutPrefix(s, ps[0])
	s, ends := strings.CutSuffix(s, ps[last])
	ok := begins && ends
	for i := 1; ok && i < last; i++ {
		_, s, ok = strings.Cut(s, ps[i])
	}
	return ok
}

// folded gives one text for all that sameLetter takes for the same: no letter
// has a case that folds to another one (a test looks at all of Unicode).
func folded(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return strings.ToLower(s)
	}
	return strings.Map(func(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }, s)
}

// widePath matches paths. An absolute pattern is asked again with each
// "/**/" closed up, and without its end.
func widePath(pattern, s string) bool {
	if len(s) > 1 {
		s = strings.TrimSuffix(s, "/")
	}
	return widePaths(pattern, s, 0)
}

// maxClosed bounds the variants of one pattern to 2^4.
const maxClosed = 4

func widePaths(pattern, s string, closed int) bool {
	if wideEnd(pattern, s) {
		return true
	}
	if closed == maxClosed {
		return false
	}
	for at := 0; ; at++ {
		i := strings.Index(pattern[at:], "/**/")
		if i < 0 {
			return false
		}
		at += i
		if widePaths(pattern[:at]+pattern[at+len("/**"):], s, closed+1) {
			return true
		}
	}
}

// wideEnd matches with and without the end of a pattern that reads as "what is
// below": "/x/", "/x/*" and "/x/**" are also /x.
func wideEnd(pattern, s string) bool {
	if wide(pattern, s) {
		return true
	}
	folder, _ := strings.CutSuffix(strings.TrimRight(pattern, "*"), "/")
	return folder != "" && strings.HasSuffix(strings.TrimRight(pattern, "*"), "/") && wide(folder, s)
}

func sameLetter(a, b rune) bool {
	return a == b || unicode.ToLower(a) == unicode.ToLower(b) || unicode.ToUpper(a) == unicode.ToUpper(b)
}

// star is where a run began: the pattern after it, and how far it has eaten.
type star struct{ p, s int }

// patience is how many steps for each byte of pattern and text the quick
// matcher may take: enough for what people write, and a bound for what an
// agent sends.
const patience = 8

// run matches quickly what is simple, and anything else in a time that is the
// product of the two lengths at worst.
func run(p, s string, sep rune, same func(a, b rune) bool) bool {
	none := star{-1, 0}
	one, all := none, none
	pi, si := 0, 0
	for left := patience * (len(p) + len(s) + 1); si < len(s) || pi < len(p); left-- {
		if left == 0 {
			return thorough(p, s, sep, same)
		}
		switch {
		case strings.HasPrefix(p[pi:], "**"):
			pi += 2
			all, one = star{pi, si}, none
			continue
		case strings.HasPrefix(p[pi:], "*"):
			pi++
			one = star{pi, si}
			continue
		case si < len(s) && pi < len(p):
			if pn, sn := step(p[pi:], s[si:], sep, same); pn > 0 {
				pi, si = pi+pn, si+sn
				continue
			}
		}
		var ok bool
		if pi, si, ok = back(s, sep, &one, &all); !ok {
			return false
		}
	}
	return true
}

// thorough keeps every position of the pattern that the text so far can have
// led to.
func thorough(p, s string, sep rune, same func(a, b rune) bool) bool {
	now := make([]bool, len(p)+1)
	enter(p, now, 0)
	for si := 0; si < len(s); {
		r, n := utf8.DecodeRuneInString(s[si:])
		next := make([]bool, len(p)+1)
		for pi := range len(p) {
			switch {
			case !now[pi]:
			case p[pi] == '*':
				if r != sep || sep == 0 || strings.HasPrefix(p[pi:], "**") {
					enter(p, next, pi)
				}
			default:
				if pn, sn := step(p[pi:], s[si:], sep, same); pn > 0 && sn == n {
					enter(p, next, pi+pn)
				}
			}
		}
		now, si = next, si+n
	}
	return now[len(p)]
}

// enter marks a position and those behind the runs that begin there.
func enter(p string, set []bool, pi int) {
	for {
		set[pi] = true
		switch {
		case strings.HasPrefix(p[pi:], "**"):
			pi += 2
		case strings.HasPrefix(p[pi:], "*"):
			pi++
		default:
			return
		}
	}
}

// step matches one character and gives what it took of both, or zeros.
func step(p, s string, sep rune, same func(a, b rune) bool) (pn, sn int) {
	a, pn := utf8.DecodeRuneInString(p)
	b, sn := utf8.DecodeRuneInString(s)
	if a == '?' && (b != sep || sep == 0) {
		return pn, sn
	}
	if a == utf8.RuneError && pn == 1 || b == utf8.RuneError && sn == 1 {
		if p[0] != s[0] {
			return 0, 0
		}
		return 1, 1
	}
	if !same(a, b) {
		return 0, 0
	}
	return pn, sn
}

// back lets the last run eat one more character.
func back(s string, sep rune, one, all *star) (pi, si int, ok bool) {
	if one.p >= 0 && one.s < len(s) {
		if r, n := utf8.DecodeRuneInString(s[one.s:]); r != sep || sep == 0 {
			one.s += n
			return one.p, one.s, true
		}
	}
	if all.p < 0 || all.s >= len(s) {
		return 0, 0, false
	}
	one.p = -1
	_, n := utf8.DecodeRuneInString(s[all.s:])
	all.s += n
	return all.p, all.s, true
}
