package policies

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// fence finds ```yaml blocks: "yaml" is a whole policy, "yaml part" some
// sections of one, "yaml wrong" a policy that is refused with the text of the
// ```text block that follows.
var fence = regexp.MustCompile("(?ms)^```yaml([a-z ]*)\n(.*?)^```\n(?:\\s*```text\n(.*?)^```\n)?")

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestManualExamples(t *testing.T) {
	text := manual(t)
	kinds := map[string]int{}
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		kind, src, message := strings.TrimSpace(m[1]), m[2], m[3]
		kinds[kind]++
		if kind == "cases" {
			runDocumented(t, src)
			continue
		}
		if kind == "part" {
			src = head + src
		}
		p, err := Parse("policy.yaml", []byte(src))
		switch {
		case kind == "wrong":
			if err == nil || err.Error()+"\n" != message {
				t.Errorf("this must fail with the quoted message:\n%s\ngot  %v\nwant %s", src, err, message)
			}
		case err != nil:
			t.Errorf("%v\nin:\n%s", err, src)
		default:
			checkCanonical(t, p)
		}
	}
	if kinds[""] < 3 || kinds["part"] < 3 || kinds["wrong"] < 5 || strings.Count(text, "```yaml") != kinds[""]+kinds["part"]+kinds["wrong"]+kinds["cases"] || kinds["cases"] < 1 {
		t.Errorf("found %v of %d blocks", kinds, strings.Count(text, "```yaml"))
	}
}

func runDocumented(t *testing.T, src string) {
	t.Helper()
	s, err := ParseSuite("cases.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Run(s.Inline) {
		if !r.OK {
			t.Errorf("the documented case %q got %+v", r.Ask, r.Got)
		}
	}
}

// The manual names every field and every reason code, and no code that is not one.
func TestManualIsComplete(t *testing.T) {
	text := manual(t)
	for code := range meanings {
		if !strings.Contains(text, "| `"+code+"` |") {
			t.Errorf("docs/policy.md does not list the reason code %s", code)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:fs|exec|net|call|infer|path|action|policy)\\.[a-z]+)` \\|").FindAllStringSubmatch(text, -1) {
		if meanings[m[1]] == "" {
			t.Errorf("docs/policy.md lists %s, which is no reason code", m[1])
		}
	}
	for field := range strings.SplitSeq("extends read write workdir exec spawn seccomp default allow deny host domain cidr ports routes models upstream "+
		"sensitive requests tokens processes memory cpu scratch openFiles wallTime files landlock tier violation user group capabilities "+
		"binaries protocol inspect path access calls denyCalls allowedIPs credentials budget up down perMinute connections "+
		"method query operation operationName fields rpc tool args frame name env header disk inodes diskRead diskWrite kernel features", " ") {
		if !strings.Contains(text, field+"`") && !strings.Contains(text, "`{"+field+": ") && !strings.Contains(text, "`"+field+"`") {
			t.Errorf("docs/policy.md does not explain %s", field)
		}
	}
	for _, name := range Presets() {
		if !strings.Contains(text, "**"+name+"**") {
			t.Errorf("docs/policy.md does not describe the preset %s", name)
		}
	}
	for _, whole := range []string{dialectA, dialectB} {
		if !strings.Contains(text, whole) {
			t.Errorf("docs/policy.md does not show the dialect verbatim:\n%s", whole)
		}
	}
}
