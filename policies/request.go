package policies

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ParseRequest reads a question as operators write it, one word each:
//
//	read /etc/shadow
//	exec /usr/bin/node digest=sha256:…
//	connect api.example.com:443 binary=/usr/bin/curl ancestors=/bin/sh,/usr/bin/node addr=10.0.0.7
//	call api.example.com:443 method=POST path=/v1/items?force=1
//	call mcp.example.com:443 protocol=mcp tool=search args={"q":"x"}
//	infer large-model sensitive=true
//
// What a call leaves out is what its protocol's clients usually send: method
// GET (POST for graphql, mcp and json-rpc), path /, protocol http.
func ParseRequest(words []string) (Request, error) {
	if len(words) < 2 {
		return Request{}, fmt.Errorf("got %q, want an action and what it acts on; write for example: connect api.example.com:443", strings.Join(words, " "))
	}
	r := Request{Action: Action(words[0])}
	keys, known := requestKeys[r.Action]
	if !known {
		return r, fmt.Errorf("got action %q, want read, write, exec, connect, call or infer", words[0])
	}
	if err := r.object(words[1]); err != nil {
		return r, err
	}
	seen := map[string]bool{}
	for _, w := range words[2:] {
		k, v, ok := strings.Cut(w, "=")
		if !ok || !slices.Contains(keys, k) || seen[k] {
			return r, fmt.Errorf("%s: got %q, want each of %s once, as key=value", r.Action, w, orNothing(keys))
		}
		seen[k] = true
		if err := requestWords[k](&r, v); err != nil {
			return r, fmt.Errorf("%s: %w", r.Action, err)
		}
	}
	if r.Action == Call {
		r.Message.usual()
	}
	return r, nil
}

// who are the words about the connecting side.
var who = []string{"binary", "ancestors", "addr"}

var requestKeys = map[Action][]string{
	Read: nil, Write: nil,
	Exec:    {"digest"},
	Connect: who,
	Call:    append([]string{"protocol", "method", "path", "operation", "name", "fields", "rpc", "tool", "args", "frame"}, who...),
	Infer:   {"sensitive"},
}

var requestWords = map[string]func(*Request, string) error{
	"digest":    func(r *Request, v string) error { r.Digest = v; return nil },
	"binary":    func(r *Request, v string) error { r.Binary = v; return nil },
	"ancestors": func(r *Request, v string) error { r.Ancestors = strings.Split(v, ","); return nil },
	"addr":      func(r *Request, v string) (err error) { r.Addr, err = netip.ParseAddr(v); return err },
	"protocol":  func(r *Request, v string) error { r.Message.Protocol = v; return nil },
	"method":    func(r *Request, v string) error { r.Message.Method = v; return nil },
	"path":      func(r *Request, v string) error { return r.Message.target(v) },
	"operation": func(r *Request, v string) error { r.Message.Operation = v; return nil },
	"name":      func(r *Request, v string) error { r.Message.OperationName = v; return nil },
	"fields":    func(r *Request, v string) error { r.Message.Fields = strings.Split(v, ","); return nil },
	"rpc":       func(r *Request, v string) error { r.Message.RPC = v; return nil },
	"tool":      func(r *Request, v string) error { r.Message.Tool = v; return nil },
	"args":      func(r *Request, v string) error { return r.Message.arguments(v) },
	"frame":     func(r *Request, v string) error { r.Message.Frame = v; return nil },
	"sensitive": func(r *Request, v string) (err error) { r.Sensitive, err = strconv.ParseBool(v); return err },
}

// object reads the second word.
func (r *Request) object(s string) error {
	switch r.Action {
	case Read, Write, Exec:
		r.Path = s
		return nil
	case Infer:
		r.Model = s
		return nil
	case Call:
		r.Message = &Message{}
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fmt.Errorf("%s: got %q, want HOST:PORT", r.Action, s)
	}
	port, err := strconv.Atoi(s[i+1:])
	if err != nil {
		return fmt.Errorf("%s: got port %q, want a number", r.Action, s[i+1:])
	}
	r.Host, r.Port = strings.Trim(s[:i], "[]"), port
	return nil
}

// target reads a path and its query.
func (m *Message) target(s string) (err error) {
	path, query, _ := strings.Cut(s, "?")
	m.Path = path
	m.Query, err = url.ParseQuery(query)
	return err
}

func (m *Message) arguments(s string) error {
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	if err := dec.Decode(&m.Args); err != nil {
		return fmt.Errorf("got args %s, want a JSON object: %w", quote(s), err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("got args %s, want one JSON object", quote(s))
	}
	return nil
}

// usual fills in what clients of the protocol usually send.
func (m *Message) usual() {
	if m.Protocol == "" {
		m.Protocol = "http"
	}
	if m.Path == "" {
		m.Path = "/"
	}
	if m.Tool != "" && m.RPC == "" {
		m.RPC = toolCall
	}
	if m.Method != "" {
		return
	}
	m.Method = "POST"
	if m.Protocol == "http" || m.Protocol == "websocket" {
		m.Method = "GET"
	}
}
