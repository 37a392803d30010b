package router

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// class names a kind of sensitive content; records and masks use it.
type class string

const (
	card  class = "card"  // payment card number, Luhn (ISO/IEC 7812-1)
	iban  class = "iban"  // bank account, mod 97 (ISO 13616)
	ssn   class = "ssn"   // US social security number, ranges of the SSA
	email class = "email" // mailbox address, the common part of RFC 5321
	key   class = "key"   // PEM or OpenPGP private key
	token class = "token" // API credential of a known form
)

// hit is one find: s[from:to].
type hit struct {
	class    class
	from, to int
}

// What a byte can begin or be part of.
const (
	isDigit = 1 << iota
	isUpper
	isLower
	isDash  // begins "-----BEGIN"
	isAt    // an address stands around it
	isLocal // may stand in the part before "@"
	isAlnum = isDigit | isUpper | isLower
)

var bytesAre = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c >= '0' && c <= '9':
			t[c] = isDigit | isLocal
		case c >= 'A' && c <= 'Z':
			t[c] = isUpper | isLocal
		case c >= 'a' && c <= 'z':
			t[c] = isLower | isLocal
		}
	}
	for _, c := range "._%+-'" {
		t[c] |= isLocal
	}
	t['-'] |= isDash
	t['@'] |= isAt
	return t
}()

// scan appends the finds of s, in order and without overlap. It walks s once,
// word by word; the anchors are a digit, two capitals, "@", a dash or a known
// prefix at the beginning of a word.
func scan(s []byte, hits []hit) []hit {
	for i := 0; i < len(s); {
		k := bytesAre[s[i]]
		if k&(isAlnum|isDash|isAt) == 0 {
			i++
			continue
		}
		if h, ok := at(s, i, k); ok {
			for len(hits) > 0 && hits[len(hits)-1].to > h.from { // an address swallows what it contains
				hits = hits[:len(hits)-1]
			}
			hits = append(hits, h)
			i = h.to
			continue
		}
		if i++; k&isAlnum != 0 {
			for i < len(s) && bytesAre[s[i]]&isAlnum != 0 {
				i++
			}
		}
	}
	return hits
}

// at tries the detectors that fit the byte s[i], whose kind is k.
func at(s []byte, i int, k uint8) (hit, bool) {
	var from, to int
	c := class("")
	switch {
	case k&isAt != 0:
		c = email
		from, to = emailAt(s, i)
	case k&isDash != 0:
		if len(s)-i < 16 || s[i+1] != '-' {
			return hit{}, false
		}
		c = key
		from, to = i, keyAt(s, i)
	case k&isDigit != 0:
		c, from, to = numberAt(s, i)
	case k&isUpper == 0 && marks[s[i]] == nil: // nearly every word of prose
		return hit{}, false
	default:
		if to = ibanAt(s, i); to > 0 {
			c, from = iban, i
		} else {
			c, from, to = token, i, tokenAt(s, i)
		}
	}
	return hit{c, from, to}, to > from
}

// numberAt tries what begins with a digit.
func numberAt(s []byte, i int) (class, int, int) {
	if i >= 2 && s[i-1] == '.' && bytesAre[s[i-2]]&isDigit != 0 {
		return "", 0, 0 // the fraction of a decimal number
	}
	if to := ssnAt(s, i); to > 0 {
		return ssn, i, to
	}
	return card, i, cardAt(s, i)
}

// ends says that no word goes on at i.
func ends(s []byte, i int) bool {
	return i >= len(s) || bytesAre[s[i]]&isAlnum == 0
}

// gap returns the length of the space or dash at s[i:], or 0. It may be one of
// Unicode's, or one that is not seen (a soft hyphen, a joiner).
func gap(s []byte, i int) int {
	if i < len(s) && s[i] == ' ' {
		return 1
	}
	if n := dash(s, i); n > 0 || i >= len(s) || s[i] < utf8.RuneSelf {
		return n
	}
	if r, n := utf8.DecodeRune(s[i:]); unicode.Is(unicode.Zs, r) {
		return n
	}
	return 0
}

// dash is a gap that is no space.
func dash(s []byte, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '-':
		return 1
	case s[i] < utf8.RuneSelf:
		return 0
	}
	if r, n := utf8.DecodeRune(s[i:]); r == '\u2212' || unicode.In(r, unicode.Pd, unicode.Cf) { // the minus counts as mathematics
		return n
	}
	return 0
}

// issuers lists the prefixes of card numbers with their lengths, longest
// prefix first where they overlap (ISO/IEC 7812 ranges as the networks publish them).
var issuers = []struct {
	lo, hi, digits int   // the first digits lie in lo..hi
	lengths        []int // of the whole number
}{
	{34, 34, 2, []int{15}},
	{37, 37, 2, []int{15}}, // American Express
	{300, 305, 3, []int{14}},
	{36, 36, 2, []int{14}},
	{38, 39, 2, []int{14, 16}}, // Diners Club
	{3528, 3589, 4, []int{16}}, // JCB
	{4, 4, 1, []int{16, 19}},   // Visa; its 13-digit numbers are gone
	{51, 55, 2, []int{16}},
	{2221, 2720, 4, []int{16}}, // Mastercard
	{6011, 6011, 4, []int{16, 19}},
	{644, 649, 3, []int{16}}, // Discover
	{65, 65, 2, []int{16}},
	{62, 62, 2, []int{16, 17, 18, 19}}, // UnionPay
}

// cardAt returns the end of a card number that begins at i, or 0. Digits may
// stand in groups with one gap between.
func cardAt(s []byte, i int) int {
	var d [19]byte
	var end [19]int // end[n]: index after the (n+1)th digit
	n := 0
	for j := i; j < len(s) && n < len(d); j++ {
		if bytesAre[s[j]]&isDigit == 0 {
			g := gap(s, j)
			if j += g; g == 0 || j >= len(s) || bytesAre[s[j]]&isDigit == 0 {
				break
			}
		}
		d[n], end[n] = s[j]-'0', j+1
		n++
	}
	if n < 14 {
		return 0
	}
	for _, l := range cardLengths(d[:n]) {
		if l <= n && ends(s, end[l-1]) && luhn(d[:l]) {
			return end[l-1]
		}
	}
	return 0
}

// cardLengths is how long a number with these first digits can be; nil means
// that nobody issues such numbers, which keeps order and part numbers out.
func cardLengths(d []byte) []int {
	for _, x := range issuers {
		v := 0
		for _, c := range d[:x.digits] {
			v = v*10 + int(c)
		}
		if v >= x.lo && v <= x.hi {
			return x.lengths
		}
	}
	return nil
}

// luhn is the check of ISO/IEC 7812-1: every second digit from the right is
// doubled, digits of the products are added, the sum ends in 0.
func luhn(d []byte) bool {
	sum := 0
	for i, c := range d {
		v := int(c)
		if (len(d)-i)%2 == 0 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

// ssnAt wants ddd-dd-dddd with an area, group and serial that were ever given
// out: not 000, 666 or 9xx; not 00; not 0000.
func ssnAt(s []byte, i int) int {
	var d [9]byte
	j := i
	for n := range d {
		if n == 3 || n == 5 {
			g := dash(s, j)
			if j += g; g == 0 {
				return 0
			}
		}
		if j >= len(s) || bytesAre[s[j]]&isDigit == 0 {
			return 0
		}
		d[n] = s[j]
		j++
	}
	a, g, e := string(d[:3]), string(d[3:5]), string(d[5:])
	if a == "000" || a == "666" || a[0] == '9' || g == "00" || e == "0000" {
		return 0
	}
	_, before := utf8.DecodeLastRune(s[:i])
	if !ends(s, j) || dash(s, j) > 0 || before > 0 && dash(s, i-before) > 0 {
		return 0
	}
	return j
}

// emailAt returns the address around the "@" at i.
func emailAt(s []byte, i int) (from, to int) {
	from = i
	for from > 0 && i-from < 64 && bytesAre[s[from-1]]&isLocal != 0 {
		from--
	}
	for from < i && bytesAre[s[from]]&isAlnum == 0 { // leading punctuation is prose
		from++
	}
	to, label, dots := i+1, i+1, 0
	for j := i + 1; j < len(s) && j-i <= 254; j++ {
		c := s[j]
		if c == '.' && j > label && j+1 < len(s) && bytesAre[s[j+1]]&isAlnum != 0 {
			label = j + 1
			dots++
		} else if bytesAre[c]&isAlnum == 0 && c != '-' {
			break
		}
		to = j + 1
	}
	if from == i || dots == 0 || !topDomain(s[label:to]) {
		return 0, 0
	}
	return from, to
}

// topDomain tells mail addresses from package@1.2.3.
func topDomain(s []byte) bool {
	if bytes.HasPrefix(s, []byte("xn--")) {
		return len(s) > 4
	}
	for _, c := range s {
		if bytesAre[c]&(isUpper|isLower) == 0 {
			return false
		}
	}
	return len(s) >= 2
}

// keyAt returns the end of a private key block: its END line, or the end of
// the text where that is missing.
func keyAt(s []byte, i int) int {
	head := []byte("-----BEGIN ")
	if !bytes.HasPrefix(s[i:], head) {
		return 0
	}
	title := s[i+len(head) : min(len(s), i+len(head)+48)]
	n := bytes.Index(title, []byte("-----"))
	if n < 0 || !bytes.Contains(title[:n], []byte("PRIVATE KEY")) {
		return 0
	}
	foot := append([]byte("-----END "), title[:n]...)
	foot = append(foot, "-----"...)
	if e := bytes.Index(s[i:], foot); e >= 0 {
		return i + e + len(foot)
	}
	return len(s)
}
