package tinymodel

import (
	"fmt"
	"slices"
	"strings"
)

// toolTag opens a tool call. The engine finds it in the template: it is the first
// text inside an `if .ToolCalls`. It has no letters because the engine looks for
// names of tools from the tag on, and a client may call a tool anything
// ("tool_call", says OpenClaw).
const toolTag = "<|=>|>"

// aside begins the user messages that clients add by themselves, after a tool's
// result, and that mustn't count as the user speaking (OpenClaw 2026.9).
const aside = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>"

// shown is how many characters of each message the template lets the model see.
const shown = 64

// Template returns the chat template, in ollama's dialect of text/template,
// that ends every prompt with the start token of the right script. It counts
// tool results in unary, since templates can't add. A Plain moment without
// a script is answered by the User script and the other way round; a tool
// result beyond the last step by the script of step 0, or else by Plain.
func Template(scripts []Script) (string, error) {
	if err := check(scripts); err != nil {
		return "", err
	}
	v, err := compile(scripts)
	if err != nil {
		return "", err
	}
	start := func(r Role, step int) string {
		i := slices.IndexFunc(scripts, func(s Script) bool { return s.When == r && s.Step == step })
		if i < 0 {
			return ""
		}
		return v.tokens[v.starts[scripts[i].Text]]
	}
	first := v.tokens[v.starts[scripts[0].Text]]
	plain := firstOf(start(Plain, 0), start(User, 0), first)
	user := firstOf(start(User, 0), start(Plain, 0), first)
	other := firstOf(start(Tool, 0), plain)

	var b strings.Builder
	fmt.Fprintf(&b, preamble, len(aside), aside, shown, toolTag)
	b.WriteString(`{{- if eq $last "tool" }}`)
	for _, s := range scripts {
		if s.Step > 0 {
			fmt.Fprintf(&b, `{{ if eq $done %q }}%s{{ else }}`, strings.Repeat(".", s.Step), start(Tool, s.Step))
		}
	}
	b.WriteString(other)
	for _, s := range scripts {
		if s.Step > 0 {
			b.WriteString(`{{ end }}`)
		}
	}
	fmt.Fprintf(&b, `{{ else if .Tools }}%s{{ else }}%s{{ end }}`, user, plain)
	return b.String(), nil
}

// preamble shows the messages and leaves in $last the role of the last one, in
// $done one dot for each tool result since the user last spoke.
const preamble = `{{- $last := "" }}{{ $done := "" -}}
{{- range .Messages }}
{{- if and (eq .Role "user") (eq (printf "%%.%[1]ds" .Content) %[2]q) }}{{ else -}}
{{- $last = .Role -}}
{{- if eq .Role "user" }}{{ $done = "" }}{{ else if eq .Role "tool" }}{{ $done = printf "%%s." $done }}{{ end -}}
{{ .Role }}: {{ printf "%%.%[3]ds" .Content }}{{ if .ToolCalls }}%[4]s{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}{{ end }}
{{ end }}{{ end }}`

func firstOf(names ...string) string {
	for _, n := range names {
		if n != "" {
			return n
		}
	}
	return ""
}
