package gate

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/gate/settings"
)

func TestParse(t *testing.T) {
	for _, x := range []struct{ line, verb, id, bundle, root, rest string }{
		{"--root /r --log /l --log-format json create --bundle /b --pid-file /p ID", "create", "ID", "/b", "/r", ""},
		{"--root=/r create -b /b --no-pivot ID", "create", "ID", "/b", "/r", ""},
		{"--systemd-cgroup start ID", "start", "ID", ".", "", ""},
		{"--log start kill ID 15", "kill", "ID", ".", "", "15"},
		{"kill --all ID TERM", "kill", "ID", ".", "", "TERM"},
		{"exec --process /p --detach --pid-file=/f ID sh --root /x", "exec", "ID", ".", "", ""},
		{"exec -e A=b -t ID create", "exec", "ID", ".", "", ""},
		{"--debug -- create ID", "create", "ID", ".", "", ""},
		{"update --resources - --cpu-quota 1 ID", "update", "ID", ".", "", ""},
		{"--version", "", "", "", "", ""},
		{"features", "features", "", ".", "", ""},
		{"", "", "", "", "", ""},
	} {
		c, err := parse(strings.Fields(x.line))
		if err != nil {
			t.Errorf("%q: %v", x.line, err)
			continue
		}
		bundle := ""
		if c.verb != "" {
			bundle = c.bundle()
		}
		if c.verb != x.verb || c.id != x.id || bundle != x.bundle || c.global["root"] != x.root || strings.Join(c.rest, " ") != x.rest {
			t.Errorf("%q: verb %q, id %q, bundle %q, root %q, rest %q", x.line, c.verb, c.id, bundle, c.global["root"], c.rest)
		}
	}
	if _, err := parse([]string{"create", "--bundle"}); err == nil {
		t.Error("a flag without its value is accepted")
	}
	c, _ := parse([]string{"--root", "/r", "create", "--bundle", "/b", "ID"})
	if got := strings.Join(c.preserving(4), " "); got != "--root /r create --preserve-fds=4 --bundle /b ID" {
		t.Errorf("with descriptors: %q", got)
	}
}

// supervisor answers with what it was asked.
type supervisor struct{ asked chan string }

func (s *supervisor) Create(_ context.Context, c *Create) (json.RawMessage, error) {
	defer c.Close()
	n := 0
	for _, f := range c.files() {
		if _, err := f.Stat(); err == nil {
			n++
		}
	}
	s.asked <- "create " + c.ID + strings.Repeat(" file", n)
	if c.Control == nil && c.Net == nil {
		return nil, errors.New("no, thanks")
	}
	return json.RawMessage(`{"ociVersion":"1"}`), nil
}

func (s *supervisor) Start(_ context.Context, id string, f *os.File) error {
	s.asked <- "start " + id
	return f.Close()
}

func (s *supervisor) Kill(_ context.Context, id string) { s.asked <- "kill " + id }

// TestSocket is both sides of it.
func TestSocket(t *testing.T) {
	at := filepath.Join(t.TempDir(), "gate.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at})
	if err != nil {
		t.Fatal(err)
	}
	h := &supervisor{make(chan string, 9)}
	done := make(chan error)
	go func() { done <- Serve(l, h) }()
	s := program{settings.Settings{Socket: at}}
	q := &Create{ID: "a", Config: json.RawMessage("{}")}
	theirs, err := q.channels(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(theirs) != channels {
		t.Errorf("%d ends for the launcher; want %d", len(theirs), channels)
	}
	var got created
	if err := s.ask(methodCreate, q, &got, q.files()...); err != nil || string(got.Config) != `{"ociVersion":"1"}` {
		t.Errorf("create: %s, %v", got.Config, err)
	}
	if err := s.ask(methodCreate, &Create{ID: "b"}, &got); err == nil || !strings.Contains(err.Error(), "no, thanks") {
		t.Errorf("a refusal: %v", err)
	}
	if err := s.ask(methodCreate, &Create{ID: "c"}, &got, theirs[0], theirs[1]); err == nil {
		t.Error("two descriptors are taken")
	}
	if err := s.ask(methodStart, "a", nil, theirs[0]); err != nil {
		t.Errorf("start: %v", err)
	}
	if err := s.ask(methodStart, "a", nil); err == nil {
		t.Error("a start without its process is taken")
	}
	if err := s.ask(methodKill, "a", nil); err != nil {
		t.Errorf("kill: %v", err)
	}
	if err := s.ask("else", "a", nil); err == nil {
		t.Error("an unknown method is answered")
	}
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the end: %v", err)
	}
	close(h.asked)
	var asked []string
	for a := range h.asked {
		asked = append(asked, a)
	}
	if want := []string{"create a file file file file file", "create b", "start a", "kill a"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if err := s.ask(methodKill, "a", nil); err == nil || !strings.Contains(err.Error(), "clawbox serve") {
		t.Errorf("without a supervisor: %v", err)
	}
}

func TestState(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(root+"/a", 0o700)
	os.WriteFile(root+"/a/state.json", []byte(`{"id":"a","init_process_pid":7,"config":{"labels":["bundle=/b","`+NamespaceOf+`=agents"]}}`), 0o600)
	c := &call{id: "a", global: map[string]string{"root": root}}
	st, err := c.state()
	if err != nil || st.PID != 7 || !st.ours(program{settings.Settings{Namespace: "agents"}}) || st.ours(program{settings.Settings{Namespace: "agent"}}) {
		t.Errorf("got %+v, %v", st, err)
	}
	for _, id := range []string{"", "b", "..", "../a", "a/../a"} {
		c.id = id
		if _, err := c.state(); err == nil {
			t.Errorf("container %q has a state", id)
		}
	}
}
