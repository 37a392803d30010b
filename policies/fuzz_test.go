package policies

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever Parse accepts has a canonical form that means the same; whatever
// it refuses, it refuses with a place and no policy.
func FuzzParse(f *testing.F) {
	for _, s := range []string{full, rich, dialectA, dialectB, head, "a: &a [*a]\n", "{", "? x\n", head + "network: {deny: [\"*\"]}\n"} {
		f.Add([]byte(s))
	}
	for _, name := range Presets() {
		src, err := os.ReadFile(name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Parse("f.yaml", src)
		if err != nil {
			var one *Error
			if p != nil || !errors.As(err, &one) || one.Line < 1 || one.Column < 1 || one.Got == "" || one.Want == "" || one.Next == "" {
				t.Fatalf("%+v %v", p, err)
			}
			return
		}
		checkCanonical(t, p)
		_ = p.Describe()
		w := world{rand.New(rand.NewPCG(1, 2))}
		for range 5 {
			r := w.request()
			if d := p.Decide(r); d.Verdict == Allow && d.Rule == "" {
				t.Fatalf("%s is allowed by no rule", r)
			}
		}
	})
}

// Decide answers any request, and never allows what no rule names.
func FuzzDecide(f *testing.F) {
	p, err := Parse("f.yaml", []byte(rich))
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range []Action{Read, Write, Exec, Connect, Call, Infer, ""} {
		f.Add(string(a), "/usr/../x", "A.example.", 443, "big", true)
	}
	f.Fuzz(func(t *testing.T, action, path, host string, port int, model string, sensitive bool) {
		m := &Message{Protocol: model, Method: "GET", Path: path, RPC: host, Tool: model, Operation: host, Frame: model}
		r := Request{Action: Action(action), Path: path, Host: host, Port: port, Model: model, Sensitive: sensitive, Binary: path, Message: m}
		d := p.Decide(r)
		if meanings[d.Reason] == "" || d.Verdict == Allow && d.Rule == "" || d.Verdict != Allow && d.Verdict != Deny && d.Verdict != Hold {
			t.Fatalf("%s: %+v", r, d)
		}
		if h, ok := p.Endpoint(r); ok && h.String() == "" {
			t.Fatalf("%s: %+v", r, h)
		}
		_ = p.Explain(r)
	})
}

// The other readers: no panic, and whatever they accept is whole.
func FuzzParseSuite(f *testing.F) {
	for _, s := range []string{"policy: sandbox\ncases: [{ask: read /x, want: deny}]\n", "policy: {network: {}}\ncases: [{ask: [call, 'a:1', 'args={}'], want: allow}]\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		s, err := ParseSuite("f.yaml", src)
		if err != nil {
			return
		}
		if s.Inline == nil && s.Policy == "" || len(s.Cases) == 0 {
			t.Fatalf("%+v", s)
		}
		p := s.Inline
		if p == nil {
			p = preset(t, "production")
		}
		s.Run(p)
	})
}

// Whatever OpenShell's dialect imports to is one of ours.
func FuzzImport(f *testing.F) {
	files, err := filepath.Glob("testdata/openshell/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no examples", err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, cs, err := Import("f.yaml", src)
		if err != nil {
			return
		}
		checkCanonical(t, p)
		for _, c := range cs {
			if c.What == "" || c.Now == "" || strings.Contains(c.String(), "\n") {
				t.Fatalf("%+v", c)
			}
		}
		if q, err := Parse("f.yaml", src); err != nil || q.Digest() != p.Digest() {
			t.Fatalf("Parse and Import differ: %v", err)
		}
	})
}
