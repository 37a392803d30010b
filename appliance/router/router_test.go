package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// book is a Recorder in memory.
type book struct {
	mu   sync.Mutex
	rs   []ledger.Record
	fail error
}

func (b *book) Record(ctx context.Context, rs ...ledger.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.rs = append(b.rs, rs...)
	return ctx.Err()
}

func (b *book) all() []ledger.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]ledger.Record(nil), b.rs...)
}

// site is a router between one agent and two upstreams that note what came.
type site struct {
	t      *testing.T
	book   *book
	router *Router
	policy *policies.Policy
	front  *httptest.Server
	mu     sync.Mutex
	got    []*http.Request
	bodies []string
	reply  http.HandlerFunc
}

const usageJSON = `{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":11,"completion_tokens":7}}`

func newSite(t *testing.T) *site {
	s := &site{t: t, book: &book{}, reply: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, usageJSON)
	}}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		s.mu.Lock()
		s.got, s.bodies = append(s.got, q), append(s.bodies, string(b))
		s.mu.Unlock()
		s.reply(w, q)
	}))
	tls := httptest.NewTLSServer(up.Config.Handler)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte("the-upstream-credential\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	s.router, err = New(Config{
		Upstreams: map[string]config.Upstream{
			"local": {URL: up.URL + "/v1"},
			"cloud": {URL: tls.URL + "/v1", KeyFile: keyFile},
			"site":  {URL: up.URL + "/v1", Local: true},
			"gone":  {URL: "http://127.0.0.1:1/v1", Local: true},
		},
		Recorder: s.book, Transport: tls.Client().Transport, MaxBody: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.policy = &policies.Policy{Name: "test", Inference: policies.Inference{
		Sensitive: "deny",
		Routes: []policies.Route{
			{Models: []string{"near"}, Upstream: "local"},
			{Models: []string{"far", "further"}, Upstream: "cloud"},
			{Models: []string{"inside"}, Upstream: "site"},
			{Models: []string{"lost"}, Upstream: "gone"},
			{Models: []string{"nowhere"}, Upstream: "undefined"},
		},
	}}
	s.front = httptest.NewServer(s.router.Handler(Agent{ID: "a1", UID: 4242, Policy: func() *policies.Policy { return s.policy }}))
	t.Cleanup(func() { s.front.Close(); up.Close(); tls.Close() })
	return s
}

// post sends body and returns status and answer.
func (s *site) post(path, body string, hdr ...string) (int, string) {
	s.t.Helper()
	q, _ := http.NewRequest("POST", s.front.URL+path, strings.NewReader(body))
	q.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(hdr); i += 2 {
		q.Header.Set(hdr[i], hdr[i+1])
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (s *site) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// records waits for n records: the second one of a call follows its answer.
func (s *site) records(n int) []ledger.Record {
	s.t.Helper()
	for range 200 {
		if rs := s.book.all(); len(rs) >= n {
			return rs
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("got %d records, want %d: %+v", len(s.book.all()), n, s.book.all())
	return nil
}

func chat(model, content string) string {
	b, _ := json.Marshal(map[string]any{"model": model, "messages": []any{map[string]string{"role": "user", "content": content}}})
	return string(b)
}

func TestForward(t *testing.T) {
	s := newSite(t)
	secret := "my card is 4111 1111 1111 1111"
	st, body := s.post("/v1/chat/completions", chat("near", secret),
		"Authorization", "Bearer from-the-agent", "Cookie", "c=1", "X-Forwarded-For", "10.9.8.7", "X-Stainless-OS", "Linux", "User-Agent", "OpenAI/JS 7")
	if st != 200 || body != usageJSON {
		t.Fatalf("got %d %s", st, body)
	}
	if s.bodies[0] != chat("near", secret) {
		t.Errorf("a local upstream must see the body whole, got %s", s.bodies[0])
	}
	for _, h := range []string{"Authorization", "Cookie", "X-Forwarded-For", "X-Stainless-Os"} {
		if v := s.got[0].Header.Get(h); v != "" {
			t.Errorf("%s: %q reached the upstream", h, v)
		}
	}
	if ua := s.got[0].UserAgent(); ua != "clawbox" {
		t.Errorf("got user agent %q", ua)
	}
	rs := s.records(2)
	a, b := rs[0], rs[1]
	if a.Kind != ledger.KindModel || a.Verdict != ledger.Allowed || a.Agent != "a1" || a.Model != "near" || a.Reason != "infer.routed" ||
		a.Attrs["upstream"] != "local" || a.Attrs["sensitive"] != "card=1" || a.Policy != s.policy.Digest() || a.Process.UID != 4242 {
		t.Errorf("first record: %+v", a)
	}
	if b.Reason != "infer.usage" || b.Attrs["input_tokens"] != 11 || b.Attrs["output_tokens"] != 7 || b.Attrs["call"] != a.Attrs["call"] || b.Attrs["status"] != 200 {
		t.Errorf("second record: %+v", b)
	}
	if all := fmt.Sprintf("%+v", rs); strings.Contains(all, "4111") || strings.Contains(all, "my card") {
		t.Errorf("content in the records: %s", all)
	}
	if n, tok := s.router.Spent("a1"); n != 1 || tok != 18 {
		t.Errorf("spent %d requests, %d tokens; want 1 and 18", n, tok)
	}
}

func TestCredential(t *testing.T) {
	s := newSite(t)
	if st, b := s.post("/v1/chat/completions", chat("far", "hello"), "Authorization", "Bearer from-the-agent"); st != 200 {
		t.Fatal(st, b)
	}
	if got := s.got[0].Header.Get("Authorization"); got != "Bearer the-upstream-credential" {
		t.Errorf("got %q", got)
	}
	up := s.router.ups["cloud"]
	if err := os.Chmod(up.key, 0o644); err != nil {
		t.Fatal(err)
	}
	if st, b := s.post("/v1/chat/completions", chat("far", "hello")); st != 502 || !strings.Contains(b, "infer.credential") || strings.Contains(b, up.key) {
		t.Errorf("a key that others can read: got %d %s", st, b)
	}
	if rs := s.records(4); !strings.Contains(rs[3].Detail, "0600") {
		t.Errorf("the ledger does not say why: %+v", rs[3])
	}
}

// Every refusal: status, code, nothing forwarded, one denied record.
func TestRefusals(t *testing.T) {
	for name, x := range map[string]struct {
		path, body string
		hdr        []string
		status     int
		code       string
	}{
		"unlisted":        {body: chat("other", "x"), status: 403, code: "infer.unlisted"},
		"no upstream":     {body: chat("nowhere", "x"), status: 502, code: "infer.no_upstream"},
		"not JSON":        {body: `{"model":`, status: 400, code: "infer.json"},
		"trailing":        {body: chat("near", "x") + "{}", status: 400, code: "infer.json"},
		"array":           {body: `["model"]`, status: 400, code: "infer.json"},
		"empty":           {body: ``, status: 400, code: "infer.json"},
		"twice":           {body: `{"model":"near","model":"far"}`, status: 400, code: "infer.json"},
		"twice escaped":   {body: `{"model":"near","mod\u0065l":"far"}`, status: 400, code: "infer.json"},
		"other case":      {body: `{"model":"near","MODEL":"far"}`, status: 400, code: "infer.json"},
		"only other case": {body: `{"Model":"near"}`, status: 400, code: "infer.json"},
		"long s":          {body: `{"model":"near","ſtream":true}`, status: 400, code: "infer.json"},
		"model type":      {body: `{"model":3}`, status: 400, code: "infer.json"},
		"no model":        {body: `{"messages":[]}`, status: 400, code: "infer.name"},
		"model control":   {body: `{"model":"ne\u001bar"}`, status: 400, code: "infer.name"},
		"max_tokens":      {body: `{"model":"near","max_tokens":-1}`, status: 400, code: "infer.json"},
		"n":               {body: `{"model":"near","n":1000}`, status: 400, code: "infer.json"},
		"many keys":       {body: `{"model":"near"` + keys(200) + `}`, status: 400, code: "infer.json"},
		"too large":       {body: chat("near", strings.Repeat("x", 1<<20)), status: 413, code: "infer.too_large"},
		"encoded":         {body: "x", hdr: []string{"Content-Encoding", "gzip"}, status: 415, code: "infer.encoding"},
		"content type":    {body: chat("near", "x"), hdr: []string{"Content-Type", "text/plain"}, status: 415, code: "infer.content_type"},
		"sensitive":       {body: chat("far", "mail alice@corp.example.org"), status: 403, code: "infer.sensitive"},
		"sensitive \\u":   {body: `{"model":"far","user":"alice\u0040corp.example.org"}`, status: 403, code: "infer.sensitive"},
		"sensitive key":   {body: `{"model":"far","metadata":{"alice@corp.example.org":1}}`, status: 403, code: "infer.sensitive"},
		"remote image":    {body: `{"model":"far","messages":[{"content":[{"image_url":{"url":"HTTPS://x/?data"}}]}]}`, status: 403, code: "infer.remote_url"},
		"hosted tool":     {body: `{"model":"far","tools":[{"type":"web_search"}]}`, status: 403, code: "infer.hosted_tool"},
		"hosted folded":   {body: `{"model":"far","Tools":[{"Type":"web_search"}]}`, status: 403, code: "infer.field"},
		"any key folded":  {body: `{"model":"near","stream_options":{},"Stream_Options":{}}`, status: 400, code: "infer.json"},
		"hosted MCP":      {body: `{"model":"far","mcp_servers":[{}]}`, status: 403, code: "infer.hosted_tool"},
		"anthropic":       {path: "/v1/messages", body: chat("other", "x"), status: 403, code: "infer.unlisted"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			if x.path == "" {
				x.path = "/v1/chat/completions"
			}
			st, body := s.post(x.path, x.body, x.hdr...)
			var e struct {
				Type  string
				Error struct{ Message, Type, Code string }
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || st != x.status || e.Error.Code != x.code || e.Error.Message == "" {
				t.Fatalf("got %d %s (%v), want %d %s", st, body, err, x.status, x.code)
			}
			if x.path == "/v1/messages" && (e.Type != "error" || e.Error.Type != "permission_error") {
				t.Errorf("not Anthropic's shape: %s", body)
			}
			if s.calls() != 0 {
				t.Error("it was forwarded")
			}
			rs := s.records(1)
			if len(rs) != 1 || rs[0].Verdict != ledger.Denied || rs[0].Reason != x.code {
				t.Errorf("records: %+v", rs)
			}
			if strings.Contains(fmt.Sprintf("%+v", rs), "alice") {
				t.Error("content in the record")
			}
		})
	}
}

func keys(n int) (s string) {
	for i := range n {
		s += fmt.Sprintf(`,"k%d":1`, i)
	}
	return s
}

// No upstream, inside the site or not, is made to reach out, to take another
// model or to use what was never shown.
func TestRemote(t *testing.T) {
	part := func(p string) string { return `"messages":[{"role":"user","content":[` + p + `]}]` }
	for field, codes := range map[string]string{
		`"search_parameters":{"mode":"on"}`:                                        "infer.hosted_tool",
		`"kv_transfer_params":{"remote_host":"a.b"}`:                               "infer.hosted_tool",
		`"models":["other"]`:                                                       "infer.field",
		`"fallbacks":[{"model":"other"}]`:                                          "infer.field",
		`"never_heard_of":{}`:                                                      "infer.field",
		`"tools":[{"google_search":{}}]`:                                           "infer.hosted_tool",
		`"tools":[{"type":"function","function":{"name":"f"}},{}]`:                 "infer.hosted_tool",
		`"tools":[{"type":"function","function":{"name":"f"},"google_search":{}}]`: "infer.hosted_tool",
		`"tools":[{"type":"function","type":"web_search"}]`:                        "infer.hosted_tool",
		`"tools":[{"type":"function","Type":"web_search"}]`:                        "infer.hosted_tool",
		`"tools":[{"type":["function"]}]`:                                          "infer.hosted_tool",
		`"tools":["web_search"]`:                                                   "infer.hosted_tool",
		`"tools":[[1,2]]`:                                                          "infer.hosted_tool",
		`"tools":{"type":"web_search"}`:                                            "infer.json",
		`"tools":[{"type":"function","function":{"parameters":{"$ref":"https://evil.example/"}}}]`: "infer.remote_url",
		part(`{"type":"image_url","image_url":{"url":"https://evil.example/"}}`):                   "infer.remote_url",
		part(`{"type":"image_url","image_url":{"url":"evil.example/a.png"}}`):                      "infer.remote_url",
		part(`{"type":"image_url","Image_URL":" \thttps://evil.example/"}`):                        "infer.remote_url",
		part(`{"type":"document_url","document_url":"https://evil.example/"}`):                     "infer.remote_url",
		part(`{"file_data":{"file_uri":"gs://evil/a"}}`):                                           "infer.remote_url",
		part(`{"type":"input_audio","input_audio":"https://evil.example/a.mp3"}`):                  "infer.remote_url",
		part(`{"type":"input_audio","input_audio":{"data":"HTTPS:evil.example"}}`):                 "infer.remote_url",
		part(`{"type":"file","file":{"file_data":"ht\ntps:\\\\evil.example"}}`):                    "infer.remote_url",
		part(`{"type":"x","x":"` + strings.Repeat(" ", 500) + `//evil.example"}`):                  "infer.remote_url",
		part(`{"type":"file","file":{"file_id":"file-1"}}`):                                        "infer.field",
	} {
		for _, model := range []string{"near", "inside", "far"} {
			s := newSite(t)
			st, b := s.post("/v1/chat/completions", `{"model":"`+model+`",`+field+`}`)
			if st/100 != 4 || !strings.Contains(b, codes) || s.calls() != 0 {
				t.Errorf("%s: %s: got %d %s", model, field, st, b)
			}
		}
	}
	for body, want := range map[string]string{
		`"prompt":{"id":"pmpt_1"},"input":"x"`:                                               `\"prompt\"`,
		`"previous_response_id":"resp_1","input":"x"`:                                        `\"previous_response_id\"`,
		`"background":true,"input":"x"`:                                                      `\"background\"`,
		`"input":[{"type":"additional_tools","tools":[{"type":"web_search"}]}]`:              "additional_tools",
		`"input":[{"type":"message","Type":"additional_tools","role":"user","content":"x"}]`: "additional_tools",
		`"input":[{"type":"item_reference","id":"msg_1"}]`:                                   "item_reference",
		`"input":[{"id":"msg_1"}]`:                                                           "without a type",
		`"input":{"id":"msg_1"}`:                                                             "want an array",
	} {
		s := newSite(t)
		if st, b := s.post("/v1/responses", `{"model":"near",`+body+`}`); st/100 != 4 || !strings.Contains(b, want) || s.calls() != 0 {
			t.Errorf("%s: got %d %s", body, st, b)
		}
	}
}

// What agents say in earnest passes everywhere.
func TestRemotePasses(t *testing.T) {
	for body, path := range map[string]string{
		// OpenClaw's, with every switch of its transport on.
		`"messages":[{"role":"system","content":"https://x.example/ is down"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",` +
			`"function":{"name":"fetch","arguments":"{\"url\":\"https://x.example/\"}"}}],"reasoning_content":"http://"},{"role":"tool","tool_call_id":"c1","content":"https://x.example/ says hi"},` +
			`{"role":"user","content":[{"type":"text","text":"https://x.example/"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}}]}],` +
			`"stream":true,"stream_options":{"include_usage":true},"store":false,"prompt_cache_key":"k","prompt_cache_retention":"24h","temperature":0,"top_p":1,"seed":1,"stop":["x"],` +
			`"response_format":{"type":"json_schema","json_schema":{"schema":{"$schema":"https://json-schema.org/draft/2020-12/schema"}}},"frequency_penalty":0,"presence_penalty":0,` +
			`"tools":[{"type":"function","function":{"name":"fetch","description":"d","strict":true,"parameters":{"type":"object","$schema":"http://json-schema.org/draft-07/schema#",` +
			`"properties":{"url":{"type":"string","default":"https://x.example","$ref":"#/$defs/u"}}}}}],"tool_choice":"auto","parallel_tool_calls":true,"tool_stream":true,` +
			`"max_completion_tokens":8,"reasoning":{"effort":"low"},"reasoning_effort":"low","thinking":{"type":"enabled"},"enable_thinking":true,"chat_template_kwargs":{"enable_thinking":true}`: "/v1/chat/completions",
		// vLLM's and NIM's.
		`"messages":[],"top_k":1,"min_p":0.1,"repetition_penalty":1,"ignore_eos":true,"stop_token_ids":[1],"guided_json":{"$schema":"https://json-schema.org/"},"structured_outputs":{"regex":"a"},` +
			`"nvext":{"guided_regex":"a"},"skip_special_tokens":true,"min_tokens":1,"logit_bias":{"1":2}`: "/v1/chat/completions",
		`"prompt":["https://x.example/","b"],"suffix":"c","echo":true,"best_of":2,"top_k":3`:                    "/v1/completions",
		`"input":["https://x.example/"],"input_type":"query","truncate":"END","dimensions":8`:                   "/v1/embeddings",
		`"web_search_options":null,"background":false,"previous_response_id":null,"input":"https://x.example/"`: "/v1/responses",
		`"instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"data:image/png;base64,AA=="}]},{"type":"reasoning","summary":[]},` +
			`{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"https://x.example/"}],"include":["reasoning.encrypted_content"],` +
			`"store":false,"tools":[{"type":"function","name":"f","parameters":{},"strict":false},{"type":"custom","name":"p","format":{"type":"text"}}],"text":{"verbosity":"low"},"reasoning":{}`: "/v1/responses",
		`"max_tokens":9,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"fetch",` +
			`"input":{"url":"https://x.example/","$ref":"https://x.example/"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"https://x.example/"},` +
			`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}]}],"tools":[{"name":"fetch","description":"d","input_schema":{}},{"type":"bash_20250124","name":"bash"}],` +
			`"thinking":{"type":"enabled","budget_tokens":1024},"metadata":{"user_id":"u"},"context_management":{"edits":[]},"stop_sequences":["x"]`: "/v1/messages",
	} {
		for _, model := range []string{"near", "far"} {
			s := newSite(t)
			if st, b := s.post(path, `{"model":"`+model+`",`+body+`}`); st != 200 {
				t.Errorf("%s %s: got %d %s", model, path, st, b)
			}
		}
	}
}

func TestClientToolsPass(t *testing.T) {
	s := newSite(t)
	body := `{"model":"far","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"url":{"type":"string"}}}}},{"type":"bash_20250124"}],` +
		`"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]}`
	if st, b := s.post("/v1/chat/completions", body); st != 200 {
		t.Fatal(st, b)
	}
}

func TestStrip(t *testing.T) {
	s := newSite(t)
	s.policy.Inference.Sensitive = "strip"
	body := `{"model":"far","messages":[{"role":"user","content":"a@b.example.com, c@d.example.com and a@b.example.com; \u00e9"},` +
		`{"role":"tool","content":"{\"k\":\"x\\u0040y.example.com\"}"}],"temperature":0}`
	if st, b := s.post("/v1/chat/completions", body); st != 200 {
		t.Fatal(st, b)
	}
	want := `{"model":"far","messages":[{"role":"user","content":"[EMAIL_1], [EMAIL_2] and [EMAIL_1]; é"},` +
		`{"role":"tool","content":"{\"k\":\"[EMAIL_3]\"}"}],"temperature":0}`
	if s.bodies[0] != want {
		t.Errorf("got  %s\nwant %s", s.bodies[0], want)
	}
	r := s.records(2)[0]
	if r.Reason != "infer.stripped" || r.Attrs["stripped"] != true || r.Attrs["sensitive"] != "email=4" {
		t.Errorf("record %+v", r)
	}
	// A site upstream sees it whole.
	body = strings.Replace(body, "far", "inside", 1)
	if st, b := s.post("/v1/chat/completions", body); st != 200 || s.bodies[1] != body {
		t.Errorf("got %d %s, sent %s", st, b, s.bodies[1])
	}
}

func TestLedgerFirst(t *testing.T) {
	s := newSite(t)
	s.policy.Inference.Budget = policies.ModelBudget{Tokens: 5000}
	s.book.fail = errors.New("disk full")
	for range 20 {
		if st, b := s.post("/v1/chat/completions", chat("near", "x")); st != 503 || !strings.Contains(b, "ledger.unavailable") {
			t.Fatalf("got %d %s", st, b)
		}
	}
	if s.calls() != 0 {
		t.Error("forwarded without a record")
	}
	s.book.mu.Lock()
	s.book.fail = nil
	s.book.mu.Unlock()
	if st, b := s.post("/v1/chat/completions", chat("near", "x")); st != 200 {
		t.Errorf("the budget kept the reservations: %d %s", st, b)
	}
}

func TestBudget(t *testing.T) {
	s := newSite(t)
	s.policy.Inference.Budget = policies.ModelBudget{Requests: 6, Tokens: 2000}
	call := func(body string, status int, code string) {
		t.Helper()
		if st, b := s.post("/v1/chat/completions", body); st != status || !strings.Contains(b, code) {
			t.Fatalf("got %d %s, want %d %s", st, b, status, code)
		}
	}
	call(`{"model":"near","max_tokens":5000}`, 429, "budget.tokens")
	call(`{"model":"near","max_tokens":900,"n":3}`, 429, "budget.tokens")
	call(chat("near", "1"), 200, "")
	call(chat("near", "2"), 200, "")
	call(`{"model":"lost"}`, 502, "infer.upstream_down") // costs a request, no tokens
	call(chat("other", "x"), 403, "infer.unlisted")      // a refused one too
	call(chat("near", "4"), 429, "budget.requests")
	s.records(10)
	if n, tok := s.router.Spent("a1"); n != 6 || tok != 36 {
		t.Errorf("spent %d and %d, want 6 and 36", n, tok)
	}
	s.router.Forget("a1")
	call(chat("near", "new life"), 200, "")
}

// Without a report the reservation is charged.
func TestBudgetNoUsage(t *testing.T) {
	s := newSite(t)
	s.reply = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }
	s.policy.Inference.Budget = policies.ModelBudget{Tokens: 1500}
	s.post("/v1/chat/completions", chat("near", "x"))
	s.records(2)
	if _, tok := s.router.Spent("a1"); tok < defaultOutput {
		t.Errorf("got %d tokens", tok)
	}
	if st, _ := s.post("/v1/chat/completions", chat("near", "x")); st != 429 {
		t.Errorf("got %d", st)
	}
}

// What was passed on is paid for, also by who hangs up before the report.
func TestBudgetHangUp(t *testing.T) {
	const tokens, each = 11000, 4000
	for name, x := range map[string]struct{ path, body, event string }{
		"chat":      {"/v1/chat/completions", `{"model":"near","stream":true}`, `{"choices":[{"delta":{"content":"w%d "}}]}`},
		"reasoning": {"/v1/chat/completions", `{"model":"near","stream":true,"max_completion_tokens":1}`, `{"choices":[{"delta":{"reasoning_content":"w%d "}}]}`},
		"tool":      {"/v1/chat/completions", `{"model":"near","stream":true}`, `{"choices":[{"delta":{"tool_calls":[{"id":"x","function":{"arguments":"%d"}}]}}]}`},
		"text":      {"/v1/completions", `{"model":"near","stream":true,"prompt":"a"}`, `{"choices":[{"text":"%d","finish_reason":null}]}`},
		"responses": {"/v1/responses", `{"model":"near","stream":true,"input":"a"}`, `{"type":"response.output_text.delta","delta":"%d"}`},
		"messages":  {"/v1/messages", `{"model":"near","stream":true,"max_tokens":5}`, `{"type":"content_block_delta","delta":{"type":"text_delta","text":"%d"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.reply = func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":2,\"output_tokens\":1}}}\n\n")
				for i := range each {
					fmt.Fprintf(w, "data: "+x.event+"\n\n", i)
				}
				io.WriteString(w, "data: {\"last\":1}\n\n")
				w.(http.Flusher).Flush()
				<-q.Context().Done() // the usage would come now
			}
			s.policy.Inference.Budget = policies.ModelBudget{Tokens: tokens}
			got, stopped := 0, false
			for i := range 20 {
				st, b := s.read(x.path, x.body, `"last"`)
				s.records(2*i + 1)
				if st != 200 {
					break
				}
				s.records(2 * (i + 1))
				got += strings.Count(b, "data: ")
				stopped = stopped || strings.Contains(b, "event: error\ndata: ") && strings.Contains(b, "budget.tokens")
			}
			_, spent := s.router.Spent("a1")
			if got < each || got > tokens || spent < got || spent > tokens || !stopped {
				t.Errorf("of %d tokens, %d were read and %d charged; stopped: %v", tokens, got, spent, stopped)
			}
		})
	}
}

// read posts and hangs up as soon as the answer holds end.
func (s *site) read(path, body, end string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	q, _ := http.NewRequestWithContext(ctx, "POST", s.front.URL+path, strings.NewReader(body))
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	buf := make([]byte, 4096)
	for err == nil && !strings.Contains(b.String(), end) {
		var n int
		n, err = resp.Body.Read(buf)
		b.Write(buf[:n])
	}
	return resp.StatusCode, b.String()
}

// An agent that hangs up before an answer begins pays what it reserved.
func TestHangUpEarly(t *testing.T) {
	s := newSite(t)
	began := make(chan bool, 1)
	s.reply = func(w http.ResponseWriter, q *http.Request) { began <- true; <-q.Context().Done() }
	ctx, cancel := context.WithCancel(t.Context())
	q, _ := http.NewRequestWithContext(ctx, "POST", s.front.URL+"/v1/chat/completions", strings.NewReader(chat("near", "x")))
	q.Header.Set("Content-Type", "application/json")
	go func() { <-began; cancel() }()
	if _, err := http.DefaultClient.Do(q); err == nil {
		t.Fatal("got an answer")
	}
	s.records(2)
	if _, tok := s.router.Spent("a1"); tok < defaultOutput {
		t.Errorf("charged %d tokens", tok)
	}
}

// Reports that can't be true don't make a call free, or a budget grow.
func TestBudgetAbsurdUsage(t *testing.T) {
	long := strings.Repeat("word ", 3000) // some 3000 tokens, more than is reserved
	for use, want := range map[string][2]int{
		`{"prompt_tokens":0,"completion_tokens":0}`:                                          {3000, 10000},
		`{"prompt_tokens":-5,"completion_tokens":-5}`:                                        {3000, 10000},
		`{"prompt_tokens":7,"completion_tokens":0}`:                                          {3000, 10000},
		`{"prompt_tokens":1e3,"completion_tokens":"x"}`:                                      {3000, 10000},
		`{"prompt_tokens":9223372036854775807,"completion_tokens":9223372036854775807}`:      {maxReport, 2 * maxReport},
		`{"input_tokens":9223372036854775807,"cache_read_input_tokens":9223372036854775807}`: {maxReport, 3 * maxReport},
		`null`: {3000, 10000},
		`{"prompt_tokens":7,"completion_tokens":11}`: {18, 18},
	} {
		s := newSite(t)
		s.reply = func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"choices":[{"message":{"content":%q}}],"usage":%s}`, long, use)
		}
		s.post("/v1/chat/completions", chat("near", "x"))
		s.records(2)
		if _, tok := s.router.Spent("a1"); tok < want[0] || tok > want[1] {
			t.Errorf("%s: charged %d tokens, want %v", use, tok, want)
		}
	}
}

// A report at the end passes, and counts instead of the estimate.
func TestBudgetReport(t *testing.T) {
	s := newSite(t)
	s.reply = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")
		}
		io.WriteString(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5000,\"completion_tokens\":2}}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n")
	}
	s.policy.Inference.Budget = policies.ModelBudget{Tokens: 3000}
	if st, b := s.post("/v1/chat/completions", `{"model":"near","stream":true,"stream_options":{"include_usage":true}}`); st != 200 || !strings.HasSuffix(b, "[DONE]\n\n") {
		t.Errorf("got %d %s", st, b)
	}
	s.records(2)
	if _, tok := s.router.Spent("a1"); tok != 5002 {
		t.Errorf("charged %d tokens, want 5002", tok)
	}
}

// All answers that a call asks for are reserved.
func TestBudgetManyAnswers(t *testing.T) {
	s := newSite(t)
	s.policy.Inference.Budget = policies.ModelBudget{Tokens: 2000}
	for body, want := range map[string]int{
		`"prompt":["a","b","c"],"max_tokens":900`:         429,
		`"prompt":[[1],[2],[3]],"max_tokens":900`:         429,
		`"prompt":"a","max_tokens":900,"best_of":3`:       429,
		`"best_of":3,"prompt":"a","max_tokens":900,"n":1`: 429,
		`"prompt":"a","best_of":1000`:                     400,
		`"prompt":[1,2,3],"max_tokens":900`:               200,
	} {
		if st, b := s.post("/v1/completions", `{"model":"near",`+body+`}`); st != want {
			t.Errorf("%s: got %d %s, want %d", body, st, b, want)
		}
	}
}

// Reservations keep concurrent calls together within the budget.
func TestBudgetConcurrent(t *testing.T) {
	s := newSite(t)
	release := make(chan bool)
	s.reply = func(w http.ResponseWriter, _ *http.Request) { <-release; io.WriteString(w, usageJSON) }
	s.policy.Inference.Budget = policies.ModelBudget{Tokens: 3 * (defaultOutput + 100)}
	codes := make(chan int, 10)
	for range 10 {
		go func() { st, _ := s.post("/v1/chat/completions", chat("near", "x")); codes <- st }()
	}
	got := map[int]int{}
	for range 7 {
		select {
		case st := <-codes:
			got[st]++
		case <-time.After(10 * time.Second):
			t.Error("more than three calls are on their way")
		}
		if t.Failed() {
			break
		}
	}
	close(release)
	if t.Failed() {
		return
	}
	for range 3 {
		got[<-codes]++
	}
	if got[429] != 7 || got[200] != 3 {
		t.Errorf("got %v, want 3 allowed and 7 refused", got)
	}
}

// A flood of calls is bounded before their bodies are read.
func TestBusy(t *testing.T) {
	s := newSite(t)
	release := make(chan bool)
	s.reply = func(w http.ResponseWriter, _ *http.Request) { <-release; io.WriteString(w, usageJSON) }
	codes := make(chan int, maxOpen)
	for range maxOpen {
		go func() { st, _ := s.post("/v1/chat/completions", chat("near", "x")); codes <- st }()
	}
	s.records(maxOpen)
	if st, b := s.post("/v1/chat/completions", chat("near", "x")); st != 429 || !strings.Contains(b, "infer.busy") {
		t.Errorf("got %d %s", st, b)
	}
	close(release)
	for range maxOpen {
		if st := <-codes; st != 200 {
			t.Errorf("got %d", st)
		}
	}
	eventually(t, func() bool { st, _ := s.post("/v1/chat/completions", chat("near", "x")); return st == 200 })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 200 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("never")
}

func TestStream(t *testing.T) {
	const chunks = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n"
	const report = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n"
	const done = "data: [DONE]\n\n"
	for name, x := range map[string]struct{ extra, sent, want string }{
		"added":   {``, `"stream_options":{"include_usage":true},`, chunks + done},
		"asked":   {`,"stream_options":{"include_usage":true}`, `,"stream_options":{"include_usage":true}`, chunks + report + done},
		"refused": {`,"stream_options":{"include_usage":false,"x":1}`, `,"stream_options":{"include_usage":true,"x":1}`, chunks + done},
		"null":    {`,"stream_options":null`, `,"stream_options":{"include_usage":true}`, chunks + done},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.reply = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
				io.WriteString(w, chunks+report+done)
			}
			st, body := s.post("/v1/chat/completions", `{"model":"near","stream":true`+x.extra+`}`)
			if st != 200 || body != x.want {
				t.Errorf("got %d %q, want %q", st, body, x.want)
			}
			if !strings.Contains(s.bodies[0], x.sent) || !json.Valid([]byte(s.bodies[0])) {
				t.Errorf("sent %s, want %s in it", s.bodies[0], x.sent)
			}
			if r := s.records(2)[1]; r.Attrs["input_tokens"] != 5 || r.Attrs["output_tokens"] != 2 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// An event must reach the agent before the next one exists.
func TestStreamIsFlushed(t *testing.T) {
	s := newSite(t)
	next := make(chan bool)
	s.reply = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			io.WriteString(w, "data: {}\n\n")
			w.(http.Flusher).Flush()
			<-next
		}
	}
	resp, err := http.Post(s.front.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"near","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 3 {
		buf := make([]byte, len("data: {}\n\n"))
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != "data: {}\n\n" {
			t.Fatalf("got %q, %v", buf, err)
		}
		next <- true
	}
}

// An agent that hangs up ends the upstream call, and pays its reservation.
func TestHangUp(t *testing.T) {
	s := newSite(t)
	ended := make(chan bool)
	s.reply = func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: {}\n\n")
		w.(http.Flusher).Flush()
		<-q.Context().Done()
		close(ended)
	}
	ctx, cancel := context.WithCancel(t.Context())
	q, _ := http.NewRequestWithContext(ctx, "POST", s.front.URL+"/v1/chat/completions", strings.NewReader(`{"model":"near","stream":true}`))
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 4))
	cancel()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the upstream call goes on")
	}
	if r := s.records(2)[1]; r.Reason != "infer.cut" || r.Attrs["charged_tokens"].(int) < defaultOutput {
		t.Errorf("record %+v", r)
	}
}

func TestUsageShapes(t *testing.T) {
	for name, x := range map[string]struct {
		events  []string
		in, out int
	}{
		"openai":     {[]string{usageJSON}, 11, 7},
		"embeddings": {[]string{`{"data":[],"usage":{"prompt_tokens":4,"total_tokens":4}}`}, 4, 0},
		"responses":  {[]string{`{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":9}}}`}, 3, 9},
		"anthropic": {[]string{
			`{"type":"message_start","message":{"usage":{"input_tokens":25,"cache_read_input_tokens":5,"output_tokens":1}}}`,
			`{"type":"message_delta","usage":{"output_tokens":15}}`,
		}, 30, 15},
		"negative": {[]string{`{"usage":{"prompt_tokens":-100,"completion_tokens":2}}`}, 0, 2},
	} {
		var u usage
		for _, e := range x.events {
			u.read([]byte(e))
		}
		if !u.seen || u.in != x.in || u.out != x.out {
			t.Errorf("%s: got %+v, want %d and %d", name, u, x.in, x.out)
		}
	}
	var u usage
	u.read([]byte(`{"choices":[{"delta":{"content":"\"usage\""}}]}`))
	if u.seen {
		t.Error("usage seen where there is none")
	}
}

func TestModels(t *testing.T) {
	s := newSite(t)
	s.reply = func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/v1/models" {
			t.Errorf("got %s", q.URL)
		}
		io.WriteString(w, `{"data":[{"id":"far"},{"id":"extra"},{"id":"near"}]}`)
	}
	s.policy.Inference.Routes = []policies.Route{
		{Models: []string{"near"}, Upstream: "local"},
		{Models: []string{"lost"}, Upstream: "gone"},
		{Models: []string{"x"}, Upstream: "undefined"},
		{Models: []string{"*"}, Upstream: "cloud"},
	}
	resp, err := http.Get(s.front.URL + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	want := `{"data":[{"id":"near","object":"model","owned_by":"local"},{"id":"lost","object":"model","owned_by":"gone"},` +
		`{"id":"far","object":"model","owned_by":"cloud"},{"id":"extra","object":"model","owned_by":"cloud"}],"object":"list"}`
	if strings.TrimSpace(string(b)) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	if rs := s.records(1); rs[0].Reason != "infer.list" || rs[0].Attrs["upstream"] != "cloud" {
		t.Errorf("records %+v", rs)
	}
	for id, want := range map[string]int{"near": 200, "org/unknown": 404} {
		resp, err := http.Get(s.front.URL + "/v1/models/" + id)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", id, resp.StatusCode, want)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	s := newSite(t)
	s.reply = func(w http.ResponseWriter, q *http.Request) {
		http.Redirect(w, q, "http://169.254.169.254/", http.StatusTemporaryRedirect)
	}
	if st, b := s.post("/v1/chat/completions", chat("far", "x")); st != 502 || !strings.Contains(b, "infer.redirect") || s.calls() != 1 {
		t.Errorf("got %d %s after %d calls", st, b, s.calls())
	}
}

// Policy is read for each call.
func TestReload(t *testing.T) {
	s := newSite(t)
	if st, _ := s.post("/v1/chat/completions", chat("near", "x")); st != 200 {
		t.Fatal(st)
	}
	s.policy = &policies.Policy{Name: "closed"}
	if st, _ := s.post("/v1/chat/completions", chat("near", "x")); st != 403 {
		t.Errorf("got %d after the policy closed", st)
	}
	s.policy = nil
	if st, _ := s.post("/v1/chat/completions", chat("near", "x")); st != 403 {
		t.Errorf("got %d without a policy", st)
	}
}

func TestNewRefuses(t *testing.T) {
	for url, want := range map[string]string{
		"http://api.example.com/v1": "plain http", "ftp://x": "want http(s)", "https://u:p@x/v1": "without user", "": "want http(s)", "https://x/v1?k=v": "without user or query",
	} {
		_, err := New(Config{Recorder: &book{}, Upstreams: map[string]config.Upstream{"cloud": {URL: url}}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", url, err, want)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no recorder: want an error")
	}
}
