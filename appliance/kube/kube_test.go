package kube

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// server is an API server as far as a test plays one: pods by name.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	pods  map[string]*Pod
	asked []string // "METHOD path?query token"
	slow  int      // how often a deleted pod is still there
}

func serve(t *testing.T) *server {
	s := &server{pods: map[string]*Pod{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.answer))
	t.Cleanup(s.Close)
	return s
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", r.Header.Get("Authorization")))
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/agents/pods"), "/")
	p := s.pods[name]
	switch {
	case r.Method == "POST":
		var in Pod
		json.NewDecoder(r.Body).Decode(&in)
		if s.pods[in.Metadata.Name] != nil {
			refuse(w, 409, "AlreadyExists")
			return
		}
		in.Metadata.UID = "uid-" + in.Metadata.Name
		s.pods[in.Metadata.Name], p = &in, &in
	case name == "":
		json.NewEncoder(w).Encode(map[string]any{"items": []*Pod{s.pods["a"]}})
		return
	case p == nil:
		refuse(w, 404, "NotFound")
		return
	case r.Method == "DELETE":
		var d deletion
		json.NewDecoder(r.Body).Decode(&d)
		if d.Preconditions["uid"] != p.Metadata.UID {
			refuse(w, 409, "Conflict")
			return
		}
		p.Metadata.Labels = map[string]string{"going": "yes"}
	case p.Metadata.Labels["going"] != "":
		if s.slow--; s.slow < 0 {
			delete(s.pods, name)
		}
	}
	json.NewEncoder(w).Encode(p)
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "code": code, "reason": reason, "message": "no"})
}

// config writes a kubeconfig for s; change edits its text.
func (s *server) config(t *testing.T, change func(string) string) string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	text := `apiVersion: v1
kind: Config
current-context: default
preferences: {}
contexts: [{name: default, context: {cluster: c, user: u, namespace: x}}]
clusters: [{name: c, cluster: {server: ` + s.URL + `, certificate-authority-data: ` + base64.StdEncoding.EncodeToString(ca) + `}}]
users: [{name: u, user: {token: secret}}]
`
	if change != nil {
		text = change(text)
	}
	f := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLife(t *testing.T) {
	s := serve(t)
	c, err := Open(s.config(t, nil), "agents")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	p, err := c.Create(ctx, &Pod{Metadata: Meta{Name: "a"}})
	if err != nil || p.Metadata.UID != "uid-a" || p.Kind != "Pod" || p.Metadata.Namespace != "agents" {
		t.Fatalf("create: %+v, %v", p, err)
	}
	var e *Error
	if _, err := c.Create(ctx, &Pod{Metadata: Meta{Name: "a"}}); !errors.As(err, &e) || e.Code != 409 || e.Reason != "AlreadyExists" {
		t.Errorf("the second of a name: %v", err)
	}
	if ps, err := c.List(ctx, "k", "v"); err != nil || len(ps) != 1 {
		t.Errorf("list: %v, %v", ps, err)
	}
	if err := c.Delete(ctx, "a", "another"); err != nil { // its precondition keeps the one that is there
		t.Errorf("delete of another: %v", err)
	}
	if _, err := c.Get(ctx, "a"); err != nil {
		t.Errorf("after the delete of another: %v", err)
	}
	s.slow = 2
	if err := c.Delete(ctx, "a", "uid-a"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := c.Get(ctx, "a"); !IsNotFound(err) {
		t.Errorf("after delete: %v", err)
	}
	if err := c.Delete(ctx, "a", "uid-a"); err != nil {
		t.Errorf("delete of what is gone: %v", err)
	}
	if want := "GET /api/v1/namespaces/agents/pods?labelSelector=k%3Dv Bearer secret"; s.asked[2] != want {
		t.Errorf("asked %q, want %q", s.asked[2], want)
	}
	if _, err := c.Get(ctx, "../nodes"); err == nil {
		t.Error("a name may leave the namespace")
	}
}

// TestRotation: a file that changed is read again.
func TestRotation(t *testing.T) {
	s := serve(t)
	f := s.config(t, nil)
	c, err := Open(f, "agents")
	if err != nil {
		t.Fatal(err)
	}
	c.Get(t.Context(), "a")
	b, _ := os.ReadFile(f)
	os.WriteFile(f, []byte(strings.ReplaceAll(string(b), "secret", "newer")), 0o600)
	os.Chtimes(f, time.Time{}, time.Now().Add(time.Second))
	c.Get(t.Context(), "a")
	if !strings.HasSuffix(s.asked[0], "secret") || !strings.HasSuffix(s.asked[1], "newer") {
		t.Errorf("asked %q", s.asked)
	}
}

func TestRefusedConfigs(t *testing.T) {
	s := serve(t)
	for want, change := range map[string]func(string) string{
		"current context": func(x string) string {
			return strings.Replace(x, "current-context: default", "current-context: other", 1)
		},
		"https": func(x string) string { return strings.Replace(x, "https://", "http://", 1) },
		"not to verify": func(x string) string {
			return strings.Replace(x, "cluster: {server", "cluster: {insecure-skip-tls-verify: true, server", 1)
		},
		"no certificate a": func(x string) string { return strings.Replace(x, "certificate-authority-data: ", "x: ", 1) },
		"neither client":   func(x string) string { return strings.Replace(x, "token: secret", "x: y", 1) },
		"kubeconfig":       func(string) string { return "[" },
	} {
		if _, err := Open(s.config(t, change), "agents"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a refusal with %q", err, want)
		}
	}
	// A server of another authority.
	other := serve(t)
	c, err := Open(s.config(t, func(x string) string {
		return strings.Replace(x, s.URL, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), 1)
	}), "agents")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "a"); err == nil || len(other.asked) > 0 {
		t.Errorf("asked a server whose name its certificate does not have: %v", err)
	}
}

func TestStuck(t *testing.T) {
	for want, text := range map[string]string{
		"":                       `{"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ContainerCreating"}}}]}`,
		"ErrImagePull: x":        `{"containerStatuses":[{"state":{"waiting":{"reason":"ErrImagePull","message":"x"}}}]}`,
		"not scheduled":          `{"conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"no node"}]}`,
		"it ended: Error":        `{"containerStatuses":[{"state":{"terminated":{"reason":"Error"}}}]}`,
		"Failed: Evicted: memry": `{"phase":"Failed","reason":"Evicted","message":"memry"}`,
	} {
		var p Pod
		if err := json.Unmarshal([]byte(text), &p.Status); err != nil {
			t.Fatal(err)
		}
		if got := p.Stuck(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
