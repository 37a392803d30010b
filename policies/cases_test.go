package policies

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The tables of testdata/cases, as `clawbox policy test` runs them.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n, reasons := 0, map[string]bool{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseSuite(f, src)
		if err != nil {
			t.Error(err)
			continue
		}
		p := s.Inline
		if p == nil {
			p = preset(t, s.Policy)
		}
		for i, r := range s.Run(p) {
			n++
			reasons[r.Got.Reason] = true
			if !r.OK {
				t.Errorf("%s:%d: %s: got %+v, want %s (%s)", f, r.Line, r.Ask, r.Got, r.Want, r.Because)
			}
			if words := p.Explain(s.Cases[i].Ask); !strings.Contains(words, r.Got.Reason) || strings.Contains(words, "\n") {
				t.Errorf("%s:%d: %q", f, r.Line, words)
			}
		}
	}
	if n < 300 {
		t.Errorf("only %d cases", n)
	}
	for code := range meanings {
		unasked := code == ReasonPolicy || code == ReasonAction || code == ReasonStrip // no policy, no action: not a question that parses
		if !reasons[code] && !unasked {
			t.Errorf("no case ends with %s", code)
		}
	}
}

// A suite that is wrong says where; one whose policy answers otherwise fails.
func TestSuiteMistakes(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"policy: sandbox\n", "s.yaml:1:1: got a suite without policy or cases"},
		{"cases: []\n", "s.yaml:1:1: got a suite without policy or cases"},
		{"policy: sandbox\ncases: [{ask: read /usr}]\n", "s.yaml:2:9: got a case without ask or want"},
		{"policy: sandbox\ncases: [{ask: fly /usr, want: deny}]\n", `got action "fly"`},
		{"policy: sandbox\ncases: [{ask: read, want: deny}]\n", "want an action and what it acts on"},
		{"policy: sandbox\ncases: [{ask: read /usr, want: deny, because: fs.no}]\n", `s.yaml:2:47: got "fs.no"`},
		{"policy: sandbox\ncases: [{ask: read /usr, want: maybe}]\n", `got "maybe"`},
		{"policy: sandbox\ncases: [{ask: [read, [a]], want: deny}]\n", "a list; want a word"},
		{"policy: {network: {deny: ['10.*']}}\ncases: [{ask: read /usr, want: deny}]\n", `got the pattern "10.*"`},
		{"policy: sandbox\ncases: [{ask: 'call a.example:443 args=[]', want: deny}]\n", "want a JSON object"},
		{"policy: sandbox\ncases: [{ask: 'call a.example:443 args={}{}', want: deny}]\n", "want one JSON object"},
		{"policy: sandbox\ncases: [{ask: connect a.example:443 addr=x, want: deny}]\n", "ParseAddr"},
		{"policy: sandbox\ncases: [{ask: connect a.example:443 path=/x, want: deny}]\n", "want each of binary, ancestors, addr once"},
		{"policy: sandbox\ncases: [{ask: connect a.example:443 binary=/x binary=/y, want: deny}]\n", "once"},
		{"policy: sandbox\ncases: [{ask: connect a.example, want: deny}]\n", "want HOST:PORT"},
		{"policy: sandbox\ncases: [{ask: 'read /usr addr=1.2.3.4', want: deny}]\n", "want each of nothing"},
	} {
		_, err := ParseSuite("s.yaml", []byte(c.src))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.src, err, c.want)
		}
	}
	s, err := ParseSuite("s.yaml", []byte("policy: sandbox\ncases:\n- {ask: read /usr, want: deny}\n- {ask: read /usr, want: allow, because: fs.write}\n- {ask: read /usr, want: allow, rule: /etc}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Run(preset(t, "sandbox")) {
		if r.OK {
			t.Errorf("%+v passed", r)
		}
	}
}

// Numbers keep their digits on the way from JSON to a comparison.
func TestArgumentNumbers(t *testing.T) {
	for _, v := range []any{json.Number("12345678901234567890"), "12345678901234567890"} {
		if s, ok := text(v); !ok || s != "12345678901234567890" {
			t.Errorf("%T became %q", v, s)
		}
	}
	if s, _ := text(1e21); s != "1000000000000000000000" {
		t.Errorf("got %q", s)
	}
}
