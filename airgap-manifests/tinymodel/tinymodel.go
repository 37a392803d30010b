// Package tinymodel writes a language model that says exactly what it is told
// to say: a GGUF file of one or two megabytes that a real engine (ollama,
// llama.cpp) loads and runs like any other.
//
// It exists so that a demonstration and its tests can drive a whole agent turn
// (question, tool call, tool result, answer) through a real engine, without a
// GPU, without weights under somebody's licence, and with the same words each
// time:
//
//	call, _ := tinymodel.ToolCall("exec", map[string]string{"command": "id -u"})
//	scripts := []tinymodel.Script{
//		{Name: "hello", When: tinymodel.Plain, Text: "Hello, I am a tiny model."},
//		{Name: "ask", When: tinymodel.User, Text: call},
//		{Name: "done", When: tinymodel.Tool, Text: "The command has run."},
//	}
//	err := tinymodel.WriteDir("dist/model", scripts) // model.gguf, template, params.json
//
// How it works. The embedding of token i is the unit vector e_i, every
// attention and feed-forward weight is zero, so the residual stream still is
// e_i at the end, and the output matrix is a table: column i holds one
// non-zero entry, in the row of the token that follows i. The model is a
// finite automaton whose state is the last token. Each script has a start
// token; the chat template puts the right one last, chosen by the roles of the
// messages. After RMS norm the winning logit is 4*sqrt(n), about 90, so
// the choice is certain at any usual temperature, not only at zero.
//
// Limits: the model doesn't read. The template shows it only the first
// characters of each message (so that prompt token counts aren't empty), and
// the answer depends on nothing but roles, on whether tools were offered, and
// on how many tool results followed the last user message.
package tinymodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Role says after which kind of message a script is spoken.
type Role string

// The moments at which a model is asked to speak.
const (
	Plain Role = "plain" // a user message, and the request offers no tools
	User  Role = "user"  // a user message, and the request offers tools
	Tool  Role = "tool"  // the result of a tool call
)

// Script is one exact text and the moment at which the model speaks it.
type Script struct {
	Name string // for error messages
	When Role
	// Step narrows a Tool script to the Step-th tool result since the last user
	// message (1 is the first). Zero answers every result that has no script of its own.
	Step int
	Text string // emitted byte for byte, then the end-of-sequence token
}

// Files are the names WriteDir gives, as a ModelPack artifact titles its layers.
const (
	ModelFile    = "model.gguf"
	TemplateFile = "template"
	ParamsFile   = "params.json"
)

// ToolCall returns the text that an engine running Template turns into a call of
// the named tool. Args must marshal to a JSON object. The form {"tool": {…}}
// is the one in which neither another tool's name nor a parameter called "name"
// confuses the engine (ollama, tools/tools.go, findTool and findArguments).
func ToolCall(tool string, args any) (string, error) {
	b, err := json.Marshal(map[string]any{tool: args})
	if err != nil {
		return "", fmt.Errorf("tinymodel: arguments of tool %q: %w", tool, err)
	}
	return toolTag + string(b), nil
}

// Write writes the model as GGUF v3. The same scripts give the same bytes.
func Write(w io.Writer, scripts []Script) error {
	if err := check(scripts); err != nil {
		return err
	}
	v, err := compile(scripts)
	if err != nil {
		return err
	}
	return writeGGUF(w, v)
}

// Params are the engine's defaults for this model, as ollama's params layer
// wants them: no randomness, and a context that is small because Template
// never shows the model more than a few hundred tokens.
func Params() []byte {
	return []byte(`{"num_ctx":4096,"temperature":0}` + "\n")
}

// WriteDir writes the three files of the model into dir, which it creates. A file
// that is in the way is replaced; none is left half-written.
func WriteDir(dir string, scripts []Script) error {
	tmpl, err := Template(scripts)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		place(filepath.Join(dir, ModelFile), func(w io.Writer) error { return Write(w, scripts) }),
		place(filepath.Join(dir, TemplateFile), func(w io.Writer) error {
			_, err := io.WriteString(w, tmpl)
			return err
		}),
		place(filepath.Join(dir, ParamsFile), func(w io.Writer) error {
			_, err := w.Write(Params())
			return err
		}))
}

// place writes path through a temporary file in the same folder. It doesn't
// fsync: these files are build output, verified by digest when bundled.
func place(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tinymodel-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // a no-op once renamed
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// check refuses scripts that the template couldn't tell apart.
func check(scripts []Script) error {
	if len(scripts) == 0 {
		return errors.New("tinymodel: no scripts: give at least one, for example {When: Plain}")
	}
	type moment struct {
		Role
		step int
	}
	seen := map[moment]*Script{}
	for i, s := range scripts {
		m := moment{s.When, s.Step}
		switch {
		case s.When != Plain && s.When != User && s.When != Tool:
			return fmt.Errorf("tinymodel: script %q: role %q: want %q, %q or %q", s.Name, s.When, Plain, User, Tool)
		case s.Text == "":
			return fmt.Errorf("tinymodel: script %q: empty text: the model would say nothing", s.Name)
		case s.Step < 0 || s.Step > 0 && s.When != Tool:
			return fmt.Errorf("tinymodel: script %q: step %d: only a %q script has a step, from 1", s.Name, s.Step, Tool)
		case seen[m] != nil:
			return fmt.Errorf("tinymodel: scripts %q and %q are both for role %q, step %d: keep one", seen[m].Name, s.Name, s.When, s.Step)
		}
		seen[m] = &scripts[i]
	}
	return nil
}
