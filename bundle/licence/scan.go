package licence

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"sort"
	"strings"
)

// Place is where bytes come from.
type Place struct {
	Item string
	File string // path within the item; for images within the layer
}

// Finding is key material that was found. It doesn't hold the secret.
type Finding struct {
	Place
	Rule   string
	Offset int64 // bytes, from the start of the file
	// Fingerprint is the beginning of the secret's sha256: with it a test key
	// that is meant to be there can be allowed.
	Fingerprint string
}

func (f Finding) String() string {
	return fmt.Sprintf("item %s, %s, byte %d: %s (fingerprint %s)", f.Item, f.File, f.Offset, f.Rule, f.Fingerprint)
}

// MaxFindings is how many findings anybody keeps: a layer of some KB can unpack to
// millions of them.
const MaxFindings = 4096

// SecretError lists findings, MaxFindings at most.
type SecretError struct{ Findings []Finding }

func (e *SecretError) Error() string {
	var s []string
	for _, f := range e.Findings {
		s = append(s, f.String())
	}
	sort.Strings(s)
	more := ""
	if n := len(s) - 20; n > 0 {
		s, more = s[:20], fmt.Sprintf("\n  and %d more", n)
		if n+20 >= MaxFindings {
			more += ", or still more"
		}
	}
	return "key material must not travel in a bundle:\n  " + strings.Join(s, "\n  ") + more +
		"\nremove it and revoke it; a key that is published for tests is allowed by its fingerprint"
}

const (
	window  = 2048 // bytes after an anchor that a form may look at
	behind  = 64   // bytes before it
	bufSize = 256 << 10
)

// Scanner looks for secrets in what is written to it. Memory: one buffer of
// 256 KiB. It belongs to one goroutine; Write never fails.
type Scanner struct {
	place  Place
	report func(Finding)
	buf    []byte // what is not scanned yet, and behind bytes before that
	start  int    // of what is not scanned yet, in buf
	off    int64  // of buf[0] in the file
}

// NewScanner begins a file. report hears of each finding at once.
func NewScanner(p Place, report func(Finding)) *Scanner {
	return &Scanner{place: p, report: report, buf: make([]byte, 0, bufSize)}
}

// Reset begins another file with the same buffer.
func (s *Scanner) Reset(p Place) { s.place, s.buf, s.start, s.off = p, s.buf[:0], 0, 0 }

// Write scans p.
func (s *Scanner) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := copy(s.buf[len(s.buf):cap(s.buf)], p)
		s.buf, p = s.buf[:len(s.buf)+k], p[k:]
		if len(s.buf) == cap(s.buf) {
			s.scan(len(s.buf) - window)
			s.keep()
		}
	}
	return n, nil
}

// Close scans what is left. The scanner can then be Reset.
func (s *Scanner) Close() error {
	s.scan(len(s.buf))
	s.start = len(s.buf)
	return nil
}

// keep moves the unscanned rest, and what is before it, to the front.
func (s *Scanner) keep() {
	cut := max(0, s.start-behind)
	s.off += int64(cut)
	s.start -= cut
	s.buf = s.buf[:copy(s.buf, s.buf[cut:])]
}

// at is where in each anchor the three bytes stand that are looked for, at most
// furthest bytes from its beginning; they are those that other text has least.
const furthest = 8

// common are pairs that text and code are full of.
const common = "in im mi io ho gh ig th he au ut or rg pa at ap pi an nt ro st te to lp np pm " + "_a _t s_ -- \"a n e  e d k"

// pairs marks the first two and the last two of the three bytes of each anchor,
// so that a look at every second position finds every anchor. A bit each: 8 KiB
// stay in the nearest cache. byPair are the rules by these pairs, and where the
// anchor begins before them.
var pairs, byPair = func() (t [1 << 10]uint64, by map[uint16][]mark) {
	by = map[uint16][]mark{}
	for i := range rules {
		a := rules[i].anchor
		k := rarest(a)
		for j := k; j < k+2; j++ {
			n := uint16(a[j]) | uint16(a[j+1])<<8
			t[n>>6] |= 1 << (n & 63)
			by[n] = append(by[n], mark{&rules[i], j})
		}
	}
	return t, by
}()

type mark struct {
	rule *rule
	back int // from the pair to the anchor's beginning
}

// rarest chooses the three bytes.
func rarest(a string) (at int) {
	best := 3
	for k := range min(len(a)-2, furthest-2) {
		n := 0
		for j := k; j < k+2; j++ {
			if strings.Contains(common, a[j:j+2]) {
				n++
			}
		}
		if n < best {
			at, best = k, n
		}
	}
	return at
}

// scan tries the rules whose anchors begin at the positions from start up to end.
func (s *Scanner) scan(end int) {
	b := s.buf[:min(len(s.buf), end+furthest)]
	for i := s.start; i < len(b)-1; i += 2 {
		n := uint16(b[i]) | uint16(b[i+1])<<8
		if pairs[n>>6]>>(n&63)&1 != 0 {
			s.try(n, i, end)
		}
	}
	s.start = max(s.start, end)
}

// try tries the rules that have the pair n, which stands at i.
func (s *Scanner) try(n uint16, i, end int) {
	for _, m := range byPair[n] {
		at := i - m.back
		if at >= s.start && at < end && bytes.HasPrefix(s.buf[at:], []byte(m.rule.anchor)) {
			s.rule(m.rule, at)
		}
	}
}

func (s *Scanner) rule(r *rule, i int) {
	before := s.buf[max(0, i-behind):i]
	if r.word && len(before) > 0 && wordByte(before[len(before)-1]) {
		return
	}
	if r.before != "" && !bytes.Contains(before, []byte(r.before)) {
		return
	}
	m := r.form.compiled().FindSubmatchIndex(s.buf[i:min(len(s.buf), i+window)])
	if m == nil {
		return
	}
	secret := s.buf[i+m[len(m)-2] : i+m[len(m)-1]]
	if r.random && !random(secret) {
		return
	}
	s.report(Finding{Place: s.place, Rule: r.name, Offset: s.off + int64(i), Fingerprint: Fingerprint(secret)})
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Fingerprint names a secret without telling it. White space doesn't count.
func Fingerprint(secret []byte) string {
	sum := sha256.Sum256(bytes.Join(bytes.Fields(secret), nil))
	return hex.EncodeToString(sum[:8])
}

// placeholders stand in documentation where a secret would.
var placeholders = []string{"example", "xxxxx", "your", "<", "changeme", "placeholder", "abcdefghij", "0123456789", "1234567890", "redacted", "dummy"}

// random says whether a secret looks drawn: 3 bits per byte or more, and none of
// the words that stand for one. Keys reach 4 and more, sentences and variable
// names with digits stay below or hold words.
func random(b []byte) bool {
	low := strings.ToLower(string(b))
	for _, p := range placeholders {
		if len(b) < 200 && strings.Contains(low, p) {
			return false
		}
	}
	var n [256]int
	digit := false
	for _, c := range b {
		n[c]++
		digit = digit || c >= '0' && c <= '9'
	}
	bits := 0.0
	for _, k := range n {
		if k > 0 {
			p := float64(k) / float64(len(b))
			bits -= p * math.Log2(p)
		}
	}
	return digit && bits >= 3
}

// Allow returns a report function that passes over allowed fingerprints and
// collects the rest, up to MaxFindings.
func Allow(fingerprints []string, into *[]Finding) func(Finding) {
	ok := map[string]bool{}
	for _, f := range fingerprints {
		ok[f] = true
	}
	return func(f Finding) {
		if !ok[f.Fingerprint] && len(*into) < MaxFindings {
			*into = append(*into, f)
		}
	}
}

// ScanConfig looks into an image's configuration: variables with a secret's name
// may have no value, and its bytes are scanned like any others (history, labels).
func ScanConfig(p Place, raw []byte, report func(Finding)) error {
	var c struct {
		Config struct{ Env []string } `json:"config"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("item %s, %s: image config: %w", p.Item, p.File, err)
	}
	seen := map[string]bool{}
	once := func(f Finding) {
		if !seen[f.Fingerprint] {
			seen[f.Fingerprint] = true
			report(f)
		}
	}
	s := NewScanner(p, once)
	s.Write(raw)
	s.Close()
	for _, kv := range c.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		if secretNames.MatchString(k) && v != "" && random([]byte(v)) {
			once(Finding{Place: p, Rule: fmt.Sprintf("variable %.80s with a value", k), Offset: int64(bytes.Index(raw, []byte(k))), Fingerprint: Fingerprint([]byte(v))})
		}
	}
	return nil
}
