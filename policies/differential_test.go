package policies

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func refDecide(p *Policy, r Request) (v Verdict, upstream string, strip bool) {
	switch r.Action {
	case Connect:
		v, _, _ := refConnect(p, r)
		return v, "", false
	case Call:
		return refCall(p, r), "", false
	case Infer:
		return refInfer(p, r)
	}
	return refPath(p, r), "", false
}

func agree(p *Policy, r Request) error {
	d := p.Decide(r)
	v, up, strip := refDecide(p, r)
	if d.Verdict != v || d.Upstream != up || d.Strip != strip {
		return fmt.Errorf("%s: got %+v, the reference says %s %q %v, under\n%s", r, d, v, up, strip, p.YAML())
	}
	return nil
}

// Decide against the reference on 100,000 pairs, and the laws that hold for
// every policy.
func TestDecideAgainstReference(t *testing.T) {
	base := preset(t, "sandbox")
	seen, reasons, parsed := map[Verdict]int{}, map[string]int{}, 0
	for seed := range uint64(5000) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		p := w.policy(base)
		var again *Policy
		if seed%4 == 0 {
			if q, err := Parse("again.yaml", p.YAML()); err == nil {
				again = q
				parsed++
			}
		}
		for range 20 {
			r := w.about(p)
			d := p.Decide(r)
			seen[d.Verdict]++
			reasons[d.Reason]++
			if err := agree(p, r); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if again != nil && again.Decide(r).Verdict != d.Verdict {
				t.Fatalf("seed %d: %s: parsed again, %+v became %+v\n%s", seed, r, d, again.Decide(r), p.YAML())
			}
			if err := w.laws(p, r, d); err != nil {
				t.Fatalf("seed %d: %s: %v\n%s", seed, r, err, p.YAML())
			}
		}
	}
	for _, v := range []Verdict{Allow, Deny, Hold} {
		if seen[v] < 2000 {
			t.Errorf("the generator is too narrow: %v", seen)
		}
	}
	for code := range meanings {
		if reasons[code] < 50 && code != ReasonPolicy && code != ReasonAction && code != ReasonModel {
			t.Errorf("the generator is too narrow: %s came %d times", code, reasons[code])
		}
	}
	if parsed < 200 { // the others contradict themselves, such as read inside write
		t.Errorf("only %d of 1250 random policies parse", parsed)
	}
}

// laws: one more denial never opens anything, one more allowance never
// overrides a denial, and opens connections only.
func (w world) laws(p *Policy, r Request, d Decision) error {
	q := *p
	q.Network.Deny = append(slices.Clone(p.Network.Deny), w.rule(Deny))
	if n := q.Decide(r); n.Verdict != d.Verdict && n.Verdict != Deny {
		return fmt.Errorf("one more deny rule turned %s into %s", d.Verdict, n.Verdict)
	}
	if len(p.Network.Allow) > 0 {
		q = *p
		q.Network.Allow = slices.Clone(p.Network.Allow)
		h := &q.Network.Allow[w.IntN(len(q.Network.Allow))]
		h.DenyCalls = append(slices.Clone(h.DenyCalls), w.call(pick(w, inspected...)))
		if n := q.Decide(r); n.Verdict != d.Verdict && n.Verdict != Deny {
			return fmt.Errorf("one more entry in denyCalls turned %s into %s", d.Verdict, n.Verdict)
		}
	}
	q = *p
	q.Network.Allow = append(slices.Clone(p.Network.Allow), w.rule(Allow))
	n := q.Decide(r)
	opens := slices.Contains([]string{ReasonUnlisted, ReasonBinary, ReasonAddress}, d.Reason)
	if r.Action != Call && n.Verdict != d.Verdict && !opens || d.Reason == ReasonDenied && n.Verdict != Deny || d.Reason == ReasonCallDenied && n.Verdict != Deny {
		return fmt.Errorf("one more allow rule turned %+v into %+v", d, n)
	}
	return nil
}

// FuzzDifferential lets the fuzzer choose the seeds.
func FuzzDifferential(f *testing.F) {
	base := preset(f, "sandbox")
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		w := world{rand.New(rand.NewPCG(a, b))}
		p := w.policy(base)
		for range 5 {
			if err := agree(p, w.about(p)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
