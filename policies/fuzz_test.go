package policies

import (
	"errors"
	"math/rand/v2"
	"os"
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
	for _, a := range []Action{Read, Write, Exec, Connect, Infer, ""} {
		f.Add(string(a), "/usr/../x", "A.example.", 443, "big", true)
	}
	f.Fuzz(func(t *testing.T, action, path, host string, port int, model string, sensitive bool) {
		r := Request{Action: Action(action), Path: path, Host: host, Port: port, Model: model, Sensitive: sensitive}
		d := p.Decide(r)
		if meanings[d.Reason] == "" || d.Verdict == Allow && d.Rule == "" || d.Verdict != Allow && d.Verdict != Deny && d.Verdict != Hold {
			t.Fatalf("%s: %+v", r, d)
		}
		_ = p.Explain(r)
	})
}
