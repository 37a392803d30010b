package tinymodel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

type msg struct {
	Role, Content string
	ToolCalls     []call
}

type call struct{ Function struct{ Name string } }

// render executes the chat template on the data that ollama gives it.
func render(t *testing.T, src string, tools bool, msgs ...msg) string {
	t.Helper()
	tmpl, err := template.New("").Option("missingkey=zero").Parse(src)
	if err != nil {
		t.Fatalf("%v in\n%s", err, src)
	}
	data := map[string]any{"Messages": msgs, "Tools": []string{}}
	if tools {
		data["Tools"] = []string{"exec"}
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, data); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTemplateChoosesTheScript(t *testing.T) {
	say := func(roles string) (out []msg) {
		for r := range strings.FieldsSeq(roles) {
			m := msg{Role: r, Content: strings.Repeat("x", 5000)}
			switch r {
			case "call":
				m = msg{Role: "assistant", ToolCalls: []call{{struct{ Name string }{"exec"}}}}
			case "aside":
				m = msg{Role: "user", Content: "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nnone"}
			}
			out = append(out, m)
		}
		return out
	}
	full := []Script{
		{"plain", Plain, 0, "plain text"},
		{"user", User, 0, "user text"},
		{"any", Tool, 0, "any text"},
		{"one", Tool, 1, "first text"},
		{"two", Tool, 2, "second text"},
	}
	cases := []struct {
		scripts []Script
		tools   bool
		roles   string
		want    string
	}{
		{full, false, "system user", "plain text"},
		{full, true, "system user", "user text"},
		{full, true, "user call tool", "first text"},
		{full, true, "user call tool call tool", "second text"},
		{full, true, "user call tool call tool call tool", "any text"},
		{full, true, "user call tool assistant user", "user text"},
		{full, true, "user call tool assistant user call tool", "first text"},
		{full, true, "user call tool aside", "first text"},
		{full, true, "user call tool call tool aside", "second text"},
		{full, true, "user call tool aside assistant user aside", "user text"},
		{full[:1], true, "user", "plain text"},
		{full[1:2], false, "user", "user text"},
		{full[:2], true, "user call tool", "plain text"},
		{full[3:], true, "user", "first text"},
		{full[3:], true, "user call tool call tool call tool", "first text"},
	}
	for i, c := range cases {
		t.Run(fmt.Sprint(i, c.roles), func(t *testing.T) {
			src, err := Template(c.scripts)
			if err != nil {
				t.Fatal(err)
			}
			prompt := render(t, src, c.tools, say(c.roles)...)
			v, _ := compile(c.scripts)
			want := v.tokens[v.starts[c.want]]
			if !strings.HasSuffix(prompt, "\n"+want) || strings.Count(prompt, "<|go_") != 1 {
				t.Errorf("prompt ends %q, want %q once, at the end", prompt[max(0, len(prompt)-40):], want)
			}
			if n := len(prompt); n > 100*len(strings.Fields(c.roles))+20 {
				t.Errorf("prompt of %d characters: messages aren't shortened", n)
			}
		})
	}
}

func TestToolCall(t *testing.T) {
	got, err := ToolCall("exec", map[string]string{"command": "id"})
	if want := `<|=>|>{"exec":{"command":"id"}}`; got != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := ToolCall("exec", func() {}); err == nil {
		t.Error("no error for arguments that JSON can't hold")
	}
}

func TestWriteDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for _, text := range []string{"first words", "other words"} { // the second run replaces
		if err := WriteDir(dir, []Script{{"p", Plain, 0, text}}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, ModelFile))
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, b).say(t, "<|go_0|>"); got != text {
			t.Errorf("said %q, want %q", got, text)
		}
	}
	if err := WriteDir(dir, nil); err == nil {
		t.Error("no error without scripts")
	}
	ents, _ := os.ReadDir(dir)
	if len(ents) != 3 {
		t.Errorf("%d files in %s, want %s, %s and %s", len(ents), dir, ModelFile, TemplateFile, ParamsFile)
	}
}
