package policies

import (
	"strings"
	"testing"
	"unicode"
)

// narrow and wide against the obvious ones, on all short patterns and texts.
func TestGlobs(t *testing.T) {
	var patterns, texts []string
	var grow func(out *[]string, alphabet, s string, n int)
	grow = func(out *[]string, alphabet, s string, n int) {
		*out = append(*out, s)
		for i := 0; i < len(alphabet) && n > 0; i++ {
			grow(out, alphabet, s+alphabet[i:i+1], n-1)
		}
	}
	grow(&patterns, "a/*?", "", 5)
	grow(&texts, "aA/", "", 4)
	for _, p := range patterns {
		for _, s := range texts {
			if got, want := narrow(p, s, '/'), refGlob(p, s, '/'); got != want {
				t.Fatalf("narrow %q %q: got %v", p, s, got)
			}
			if got, want := thorough(p, s, '/', exactly), refGlob(p, s, '/'); got != want {
				t.Fatalf("thorough %q %q: got %v", p, s, got)
			}
			if got, want := thorough(p, s, 0, sameLetter), refWide(p, s); got != want {
				t.Fatalf("thorough, wide %q %q: got %v", p, s, got)
			}
			if got, want := wide(p, s), refWide(p, s); got != want {
				t.Fatalf("wide %q %q: got %v", p, s, got)
			}
			if simple(p, s) && (pieces(p, s) != run(p, s, 0, exactly) || pieces(folded(p), folded(s)) != run(p, s, 0, sameLetter)) {
				t.Fatalf("pieces %q %q: not as run", p, s)
			}
			if got, want := widePath(p, s), refWidePath(p, s); got != want {
				t.Fatalf("widePath %q %q: got %v", p, s, got)
			}
			if narrow(p, s, '/') && !widePath(p, s) {
				t.Fatalf("%q in a denial matches less than in an allowance: %q", p, s)
			}
		}
	}
}

// What an agent sends cannot make one decision cost seconds: the quick matcher
// alone would need 10^11 steps here.
func TestGlobPatience(t *testing.T) {
	long := strings.Repeat("a", 1<<16)
	for _, p := range []string{"**a*b", "*a*a*a*b", "**a*a/**a*b"} {
		if narrow(p, long, '/') || wide(p, long) || widePath("/"+p, "/"+long) {
			t.Errorf("%q matched", p)
		}
	}
	if !narrow("**a*", long, '/') || !wide("*A*a", long) {
		t.Error("no match")
	}
}

// Folding is as wide as comparing letters, for all of Unicode.
func TestFolded(t *testing.T) {
	for r := range unicode.MaxRune + 1 {
		f := folded(string(r))
		if low, up := folded(string(unicode.ToLower(r))), folded(string(unicode.ToUpper(r))); f != low || f != up {
			t.Errorf("%U folds to %q, its cases to %q and %q", r, f, low, up)
		}
	}
}

// Megabytes of an argument cost milliseconds for each pattern.
func BenchmarkWideLong(b *testing.B) {
	long := strings.Repeat("a", 4<<20)
	for b.Loop() {
		wide("*rm*-rf*", long)
	}
}

// FuzzGlobs holds both matchers to one answer, on any bytes.
func FuzzGlobs(f *testing.F) {
	f.Add("/a/**/b*", "/a/\xff/é")
	f.Fuzz(func(t *testing.T, p, s string) {
		if len(p) > 64 || len(s) > 256 {
			return
		}
		for _, sep := range []rune{0, '/'} {
			if run(p, s, sep, exactly) != thorough(p, s, sep, exactly) || run(p, s, sep, sameLetter) != thorough(p, s, sep, sameLetter) {
				t.Errorf("%q %q %q: the two matchers differ", p, s, sep)
			}
		}
		if simple(p, s) && (pieces(p, s) != run(p, s, 0, exactly) || run(p, s, 0, sameLetter) && !pieces(folded(p), folded(s))) {
			t.Errorf("%q %q: matched in pieces it is another answer", p, s)
		}
		if narrow(p, s, '/') && !widePath(p, s) {
			t.Errorf("%q in a denial matches less than in an allowance: %q", p, s)
		}
	})
}
