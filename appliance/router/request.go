package router

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"unicode"
)

// endpoint is a call that the router serves.
type endpoint struct {
	path   string // below an upstream's base
	shape  shape
	output bool // the answer is generated text: reserve tokens for it
	usage  bool // stream_options.include_usage makes a stream report usage
	fields fieldSet
}

var endpoints = map[string]endpoint{
	"/v1/chat/completions": {path: "/chat/completions", output: true, usage: true, fields: fields(sampled, cached, engine, chatting)},
	"/v1/completions":      {path: "/completions", output: true, usage: true, fields: fields(sampled, engine, completing)},
	"/v1/responses":        {path: "/responses", output: true, fields: fields(sampled, cached, engine, responding)},
	"/v1/embeddings":       {path: "/embeddings", fields: fields(embedding)},
	"/v1/messages":         {path: "/messages", output: true, shape: anthropic, fields: fields(messaging)},
}

// request is what the router has to know of a body.
type request struct {
	model  string
	stream bool
	output int  // bound of generated tokens that the body asks for, 0 if none
	choice int  // answers made for each prompt
	prompt int  // prompts
	added  bool // include_usage was added by the router: hide what it causes

	body   []byte
	fields []field
}

// maxKeys bounds the top-level keys: real requests have some twenty.
const maxKeys = 128

// parse reads a body strictly enough that no upstream can read another model
// or stream flag out of it: one JSON object, no key twice at the top, also not
// in another case (some decoders fold case).
func parse(b []byte) (request, *refusal) {
	r := request{body: b, choice: 1, prompt: 1}
	if !json.Valid(b) {
		return r, refuse(http.StatusBadRequest, "infer.json", "the body is not JSON")
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); t[0] != '{' {
		return r, refuse(http.StatusBadRequest, "infer.json", "the body is not a JSON object")
	}
	r.fields = topLevel(b)
	if len(r.fields) > maxKeys {
		return r, refuse(http.StatusBadRequest, "infer.json", "got %d top-level keys, want at most %d", len(r.fields), maxKeys)
	}
	if k, ok := twice(r.fields); ok {
		return r, refuse(http.StatusBadRequest, "infer.json", "got the key %.64q twice (or in another case), want it once, in lower case", k)
	}
	return r, r.read()
}

// twice finds a key that some decoder could take for another one.
func twice(fs []field) (string, bool) {
	for i, f := range fs {
		for _, g := range fs[:i] {
			if strings.EqualFold(f.key, g.key) {
				return f.key, true
			}
		}
		for k := range readers {
			if f.key != k && strings.EqualFold(f.key, k) {
				return f.key, true
			}
		}
	}
	return "", false
}

// readers decode the top-level fields that matter; null counts as absent.
var readers = map[string]func(*request, []byte) error{
	"model":                 func(r *request, v []byte) error { return json.Unmarshal(v, &r.model) },
	"stream":                func(r *request, v []byte) error { return json.Unmarshal(v, &r.stream) },
	"max_tokens":            readOutput,
	"max_completion_tokens": readOutput,
	"max_output_tokens":     readOutput,
	"n":                     readChoice,
	"best_of":               readChoice, // that many are made, and the best are shown
	"prompt":                readPrompt,
}

func readOutput(r *request, v []byte) error {
	var n int
	err := json.Unmarshal(v, &n)
	r.output = max(r.output, n)
	if n < 0 {
		return errNegative
	}
	return err
}

func readChoice(r *request, v []byte) error {
	n := 1
	err := json.Unmarshal(v, &n)
	if n < 1 || n > 128 {
		r.choice = n
	} else if r.choice >= 1 && r.choice <= 128 {
		r.choice = max(r.choice, n)
	}
	return err
}

// readPrompt counts the prompts of /v1/completions: each has its own answers.
// A list of numbers is one, in tokens.
func readPrompt(r *request, v []byte) error {
	if v[0] != '[' {
		return nil
	}
	if es := elements(v); len(es) > 1 && (es[0][0] == '"' || es[0][0] == '[') {
		r.prompt = len(es)
	}
	return nil
}

func (r *request) read() *refusal {
	for _, f := range r.fields {
		if dec := readers[f.key]; dec != nil {
			if err := dec(r, r.body[f.start:f.end]); err != nil {
				return refuse(http.StatusBadRequest, "infer.json", "the value of %q has the wrong type", f.key)
			}
		}
	}
	if r.choice < 1 || r.choice > 128 {
		return refuse(http.StatusBadRequest, "infer.json", "got n or best_of = %d, want 1 to 128", r.choice)
	}
	if !modelName(r.model) {
		return refuse(http.StatusBadRequest, "infer.name", "got model %.64q, want a printable name of 1 to 256 bytes", r.model)
	}
	return nil
}

// modelName keeps names out that a log or a terminal could be tricked with.
func modelName(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(c rune) bool {
		return !unicode.IsPrint(c) || c == unicode.ReplacementChar
	})
}

// wantUsage makes a stream end with a usage report, which budgets need. b is
// the body that r was parsed from.
func (r *request) wantUsage(ep endpoint, b []byte) ([]byte, *refusal) {
	if !ep.usage || !r.stream {
		return b, nil
	}
	opts := map[string]any{}
	at := slices.IndexFunc(r.fields, func(f field) bool { return f.key == "stream_options" })
	if at >= 0 {
		if json.Unmarshal(b[r.fields[at].start:r.fields[at].end], &opts) != nil {
			return nil, refuse(http.StatusBadRequest, "infer.json", "the value of \"stream_options\" is not an object")
		}
		if opts["include_usage"] == true {
			return b, nil
		}
	}
	if opts == nil { // JSON null
		opts = map[string]any{}
	}
	opts["include_usage"], r.added = true, true
	v, _ := json.Marshal(opts) // a decoded JSON object always encodes
	if at >= 0 {
		f := r.fields[at]
		return slices.Concat(b[:f.start], v, b[f.end:]), nil
	}
	i := bytes.IndexByte(b, '{') + 1 // "model" is there, so a comma is due
	return slices.Concat(b[:i], []byte(`"stream_options":`), v, []byte(","), b[i:]), nil
}
