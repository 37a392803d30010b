package policies

import (
	"strings"

	"go.yaml.in/yaml/v4"
)

// Suite is a table of questions with the answers that a policy must give:
//
//	policy: openclaw.yaml          # a file, a preset, or a policy written out
//	cases:
//	  - {ask: connect evil.example:443, want: deny, because: net.denied}
//	  - {ask: [call, "mcp.example:443", protocol=mcp, tool=search], want: allow}
type Suite struct {
	Policy string  // a file or preset, when Inline is nil
	Inline *Policy // written out in the suite
	Cases  []Case
}

// Case is one question. Because and Rule are optional: the reason code, and a
// part of the rule that decides.
type Case struct {
	Name    string
	Line    int
	Ask     Request
	Words   string // Ask as it was written
	Want    Verdict
	Because string
	Rule    string
}

// Result is what became of one case.
type Result struct {
	Name    string   `json:"name,omitempty"`
	Line    int      `json:"line"`
	Ask     string   `json:"ask"`
	Want    Verdict  `json:"want"`
	Because string   `json:"because,omitempty"`
	Got     Decision `json:"got"`
	OK      bool     `json:"ok"`
}

// ParseSuite reads a suite; mistakes are reported as by Parse.
func ParseSuite(name string, src []byte) (*Suite, error) {
	d := &decoder{file: name, set: map[string]*yaml.Node{}}
	s := &Suite{}
	if doc := d.tree(src); len(d.errs) == 0 {
		d.object(doc, "", object{
			"policy": func(n *yaml.Node) { d.subject(s, n) },
			"cases":  func(n *yaml.Node) { d.cases(s, n) },
		})
		if doc.Kind == yaml.MappingNode && (lookup(doc, "policy") == nil || len(s.Cases) == 0) && len(d.errs) == 0 {
			d.fail(doc, "a suite without policy or cases", "both", "write policy: FILE and at least one case")
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return s, nil
}

func (d *decoder) subject(s *Suite, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		s.Policy, _ = d.str(n, "policy")
		return
	}
	inner := &decoder{file: d.file, set: map[string]*yaml.Node{}}
	inner.document(n, nil)
	d.errs = append(d.errs, inner.errs...)
	s.Inline = inner.p
}

func (d *decoder) cases(s *Suite, n *yaml.Node) {
	d.list(n, "cases", func(c *yaml.Node) {
		x := Case{Line: c.Line}
		var words []string
		d.object(c, "cases", object{
			"name":    func(m *yaml.Node) { x.Name, _ = d.str(m, "name") },
			"ask":     func(m *yaml.Node) { words = d.words(m) },
			"want":    func(m *yaml.Node) { d.word(m, "want", (*string)(&x.Want), "allow", "deny", "hold") },
			"because": func(m *yaml.Node) { x.Because = d.reason(m) },
			"rule":    func(m *yaml.Node) { x.Rule, _ = d.str(m, "rule") },
		})
		if words == nil || lookup(c, "want") == nil {
			d.fail(c, "a case without ask or want", "both", "write {ask: connect example.com:443, want: deny}")
			return
		}
		var err error
		if x.Ask, err = ParseRequest(words); err != nil {
			d.fail(c, "the question "+quote(strings.Join(words, " "))+" ("+err.Error()+")", "a question to the policy", "see clawbox policy explain --help")
		}
		x.Words = strings.Join(words, " ")
		s.Cases = append(s.Cases, x)
	})
}

// words reads a question: words in one string, or a list of them where one
// holds a space.
func (d *decoder) words(n *yaml.Node) (out []string) {
	if n.Kind == yaml.ScalarNode {
		s, _ := d.str(n, "ask")
		return strings.Fields(s)
	}
	d.list(n, "ask", func(c *yaml.Node) {
		if c.Kind != yaml.ScalarNode {
			d.fail(c, describe(c), "a word", "write the question as one string, or as a list of words")
		}
		out = append(out, c.Value)
	})
	return out
}

func (d *decoder) reason(n *yaml.Node) string {
	s, ok := d.str(n, "because")
	if ok && meanings[s] == "" {
		d.fail(n, quote(s), "a reason code for because", "docs/policy.md lists them")
	}
	return s
}

// Run asks p every question of the suite.
func (s *Suite) Run(p *Policy) []Result {
	out := make([]Result, len(s.Cases))
	for i, c := range s.Cases {
		d := p.Decide(c.Ask)
		out[i] = Result{Name: c.Name, Line: c.Line, Ask: c.Words, Want: c.Want, Because: c.Because, Got: d}
		out[i].OK = d.Verdict == c.Want && (c.Because == "" || d.Reason == c.Because) && strings.Contains(d.Rule, c.Rule)
	}
	return out
}
