package engine

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/airgap-manifests/tinymodel"
)

// realEngine starts the engine that CLAWBOX_ENGINE names on a tiny model.
func realEngine(t *testing.T, scripts []tinymodel.Script) *Engine {
	t.Helper()
	bin := os.Getenv("CLAWBOX_ENGINE")
	if bin == "" {
		t.Skip("CLAWBOX_ENGINE is not set: build one with airgap-manifests/ollama/build.sh and name it there")
	}
	cfg, log := bench(t)
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Binary, b, 0o755); err != nil { // where its user can reach it
		t.Fatal(err)
	}
	store := filepath.Join(filepath.Dir(cfg.Dir), "store")
	if err := tinymodel.WriteDir(store, scripts); err != nil {
		t.Fatal(err)
	}
	m := Model{Name: "tiny"}
	for _, name := range []string{tinymodel.ModelFile, tinymodel.TemplateFile, tinymodel.ParamsFile} {
		path := filepath.Join(store, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, Layer{Title: name, Path: path, Size: int64(len(b)), Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(b))})
	}
	if err := Prepare(cfg.Dir, []Model{m}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log)
		}
	})
	return start(t, cfg)
}

type object = map[string]any

// chat posts to /v1/chat/completions and returns the body.
func chat(t *testing.T, e *Engine, req object) []byte {
	t.Helper()
	req["model"] = "tiny"
	b, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(e.URL()+"/v1/chat/completions", "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %s %v", res.Status, out, err)
	}
	return out
}

// answer is the part of a completion, or of one event of a stream, that matters here.
type answer struct {
	Choices []struct {
		Message, Delta answered
		FinishReason   string `json:"finish_reason"`
	}
	Usage struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
	}
}

type answered struct {
	Content   string
	ToolCalls []struct {
		ID       string
		Function struct{ Name, Arguments string }
	} `json:"tool_calls"`
}

func decode(t *testing.T, b []byte) (a answer) {
	t.Helper()
	if err := json.Unmarshal(b, &a); err != nil || len(a.Choices) == 0 {
		t.Fatalf("%s: %v", b, err)
	}
	return a
}

// stream joins the events of a streamed answer; it fails without the final [DONE].
func stream(t *testing.T, body []byte) (text string, calls []answered, events int) {
	t.Helper()
	sc := bufio.NewScanner(bytes.NewReader(body))
	for sc.Scan() {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return text, calls, events
		}
		for _, c := range decode(t, []byte(data)).Choices {
			text += c.Delta.Content
			if len(c.Delta.ToolCalls) > 0 {
				calls = append(calls, c.Delta)
			}
		}
		events++
	}
	t.Fatalf("the stream has no [DONE]:\n%s", body)
	return "", nil, 0
}

var tools = []object{
	tool("read", "path"), tool("exec", "command"), tool("process", "action"), tool("execute_all", "x"), tool("tool_call", "name"), tool("call", "name"),
}

func tool(name, arg string) object {
	return object{"type": "function", "function": object{
		"name": name, "description": "a tool of the test",
		"parameters": object{"type": "object", "properties": object{arg: object{"type": "string"}}},
	}}
}

func TestRealEngineSpeaksTheScripts(t *testing.T) {
	const command = `printf '%s\n' "a<b>&c" && id -u | tee /tmp/x; read y`
	call, err := tinymodel.ToolCall("exec", map[string]string{"command": command})
	if err != nil {
		t.Fatal(err)
	}
	again, err := tinymodel.ToolCall("call", map[string]string{"name": "exec"})
	if err != nil {
		t.Fatal(err)
	}
	const plain, final = "Hello, I am a tiny model: é 漢字 🦞.\nSecond line, the model, the model.", "The command has run, and the model is done."
	e := realEngine(t, []tinymodel.Script{
		{Name: "plain", When: tinymodel.Plain, Text: plain},
		{Name: "call", When: tinymodel.User, Text: call},
		{Name: "again", When: tinymodel.Tool, Step: 1, Text: again},
		{Name: "final", When: tinymodel.Tool, Text: final},
	})
	hello := object{"role": "user", "content": strings.Repeat("say something ", 4000)}

	for _, temp := range []float64{0, 1} {
		a := decode(t, chat(t, e, object{"messages": []object{hello}, "temperature": temp}))
		if c := a.Choices[0]; c.Message.Content != plain || c.FinishReason != "stop" {
			t.Errorf("temperature %v: said %q (%s), want %q (stop)", temp, c.Message.Content, c.FinishReason, plain)
		}
		if a.Usage.PromptTokens == 0 || a.Usage.CompletionTokens < 10 {
			t.Errorf("usage %+v", a.Usage)
		}
	}
	text, _, events := stream(t, chat(t, e, object{"messages": []object{hello}, "stream": true}))
	if text != plain || events < 10 {
		t.Errorf("streamed %q in %d events, want %q in many", text, events, plain)
	}

	msgs := []object{{"role": "system", "content": "be tiny"}, hello}
	for i, want := range []struct{ tool, arg, value string }{{"exec", "command", command}, {"call", "name", "exec"}} {
		a := decode(t, chat(t, e, object{"messages": msgs, "tools": tools})).Choices[0]
		got := checkCall(t, a.Message, want.tool, want.arg, want.value)
		if a.FinishReason != "tool_calls" {
			t.Errorf("call %d: finish_reason %q", i, a.FinishReason)
		}
		_, calls, _ := stream(t, chat(t, e, object{"messages": msgs, "tools": tools, "stream": true}))
		if len(calls) != 1 {
			t.Fatalf("call %d: %d streamed calls, want 1", i, len(calls))
		}
		checkCall(t, calls[0], want.tool, want.arg, want.value)
		msgs = append(msgs,
			object{"role": "assistant", "content": "", "tool_calls": []object{{"id": got, "type": "function", "function": object{"name": want.tool, "arguments": "{}"}}}},
			object{"role": "tool", "tool_call_id": got, "content": "the result " + strings.Repeat("x", 3000)})
	}
	a := decode(t, chat(t, e, object{"messages": msgs, "tools": tools})).Choices[0]
	if a.Message.Content != final || len(a.Message.ToolCalls) != 0 {
		t.Errorf("said %q, want %q", a.Message.Content, final)
	}
}

// checkCall holds one call against what the script says and returns its id.
func checkCall(t *testing.T, m answered, tool, arg, value string) string {
	t.Helper()
	if len(m.ToolCalls) != 1 || m.ToolCalls[0].Function.Name != tool || m.Content != "" {
		t.Fatalf("got %+v, want one call of %s and no text", m, tool)
	}
	var args map[string]string
	if err := json.Unmarshal([]byte(m.ToolCalls[0].Function.Arguments), &args); err != nil || args[arg] != value || len(args) != 1 {
		t.Errorf("arguments %s (%v), want %s = %q", m.ToolCalls[0].Function.Arguments, err, arg, value)
	}
	return m.ToolCalls[0].ID
}
