package holds

import (
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/control"
)

// A process that holds the book and was taken over shows one change and asks
// for another: whoever checks what it gives notices, even under an old digest.
func TestCheck(t *testing.T) {
	d, cl, _ := served(t)
	c := d.ask(base())
	d.one()
	h, err := cl.Watch(t.Context(), "")
	if err != nil || len(h.Pending) != 1 {
		t.Fatalf("got %+v, %v", h, err)
	}
	shown := h.Pending[0]
	if err := Check(shown); err != nil {
		t.Error(err)
	}
	again := shown
	again.Waiting, again.Ended = 7, true
	if err := Check(again); err != nil {
		t.Errorf("more connections wait: %v", err)
	}
	for name, edit := range map[string]func(*control.Pending){
		"change":   func(p *control.Pending) { p.Change = `network: {allow: [{host: "*"}]}` },
		"agent":    func(p *control.Pending) { p.Agent = "other" },
		"host":     func(p *control.Pending) { p.Host = "evil.example" },
		"port":     func(p *control.Pending) { p.Port++ },
		"binary":   func(p *control.Pending) { p.Binary = "/bin/sh" },
		"ancestor": func(p *control.Pending) { p.Ancestors = p.Ancestors[1:] },
		"words":    func(p *control.Pending) { p.Words = "nothing" },
		"policy":   func(p *control.Pending) { p.PolicyDigest = "sha256:0" },
		"id":       func(p *control.Pending) { p.ID = "x" },
	} {
		p := shown
		edit(&p)
		if Check(p) == nil {
			t.Errorf("%s: changed under its digest", name)
		}
	}
	lie := shown // all of it consistent, but for the words
	lie.Change = `network: {allow: [{host: "*"}]}`
	lie.Digest = shownDigest(lie)
	if err := Check(lie); err == nil || !strings.Contains(err.Error(), "means") {
		t.Errorf("words of another change: %v", err)
	}
	broken := shown
	broken.Change = "network: {allow: [{host: a.example}, {host: b.example}]}"
	broken.Digest = shownDigest(broken)
	if Check(broken) == nil {
		t.Error("two rules in one change")
	}
	d.answer(d.one(), yes(d.one(), Once))
	if out := got(t, c); !out.Allow {
		t.Errorf("got %+v", out)
	}
}
