package inspect

import (
	"encoding/base64"
	"io"
	"strings"
	"testing"
)

const secret = "s3cr3t-0123456789"

func TestMasker(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "nothing": "nothing", secret: strings.Repeat("*", len(secret)), "a" + secret + "b" + secret: "a" + strings.Repeat("*", len(secret)) + "b" + strings.Repeat("*", len(secret)),
		secret[:5]: secret[:5], secret[:5] + secret: secret[:5] + strings.Repeat("*", len(secret)),
	} {
		for _, size := range []int{1, 2, 3, 7, 1000} {
			m := NewMasker(secret).Reader(io.NopCloser(&pieces{in, size}), func() {})
			if got, err := io.ReadAll(m); err != nil || string(got) != want {
				t.Errorf("%q in pieces of %d: got %q %v", in, size, got, err)
			}
		}
	}
}

// pieces reads a text a few bytes at a time.
type pieces struct {
	s string
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.s == "" {
		return 0, io.EOF
	}
	n := copy(b, p.s[:min(p.n, len(p.s))])
	p.s = p.s[n:]
	return n, nil
}

// What encoders make of a secret is masked, too, the longer form first.
func TestMaskerForms(t *testing.T) {
	m := NewMasker("a/b+c&d", "a/b", "")
	for in, want := range map[string]string{
		"x a/b+c&d y": "x ******* y", `"a\/b+c&d"`: `"********"`, "k=a%2Fb%2Bc%26d": "k=*************", "a/b+c&amp;d": "***********", `a/b+c\u0026d`: "************", "a/b": "***",
	} {
		if got := m.Text(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	for i := range 6 { // as a part of something in base64, wherever it begins
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
			in := enc.EncodeToString([]byte("me:me:"[:i] + "ghp-?>?>?" + secret + "\xff\xfe tail"))
			got := NewMasker("ghp-?>?>?" + secret).Text(in)
			// At most the letters that share bits with what is beside may be left.
			if out := strings.Trim(got, "*"); len(got) != len(in) || strings.Count(got, "*") < (len("ghp-?>?>?"+secret)*8-10)/6 || out == in {
				t.Errorf("%s became %s", in, got)
			}
		}
	}
	if m := NewMasker(secret); !m.Names("X-"+strings.ToUpper(secret)) || m.Names("X-Other") || (*Masker)(nil).Names(secret) {
		t.Error("names of headers")
	}
	if (*Masker)(nil).Text("x") != "x" {
		t.Error("a nil Masker changes text")
	}
}
