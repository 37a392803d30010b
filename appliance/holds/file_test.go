package holds

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// written is a file that this package wrote.
func written(t *testing.T) string {
	t.Helper()
	d := newDesk(t)
	d.asks(base(func(q *Question) { q.Host = "h.example" }))
	d.answer(d.one(), yes(d.one(), Always))
	d.asks(base(func(q *Question) { q.Ancestors = []string{"/bin/<sh>&"} }))
	b, err := os.ReadFile(d.c.File)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFile: what was not written here is refused, with the file's name.
func TestFile(t *testing.T) {
	good := written(t)
	v1 := `{"version":1,"approvals":[{"agent":"a","policy":"p","host":"h.example","port":443,"operator":"o","time":"2026-01-02T03:04:05Z"}]}`
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in\n%s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, x := range map[string]struct {
		text string
		ok   bool
	}{
		"good": {good, true}, "none": {`{"version":2,"pending":[],"grants":[]}`, true}, "version 1": {v1, true},
		"empty": {"", false}, "cut": {good[:200], false}, "trailing": {good + "{}", false}, "null": {"null", false},
		"version": {edit(`"version": 2`, `"version": 3`), false}, "mixed": {strings.Replace(v1, "1", "2", 1), false},
		"unknown field":  {edit(`"pending": [`, `"x": 1, "pending": [`), false},
		"unknown within": {edit(`"agent"`, `"x": 1, "agent"`), false},
		"duplicate key":  {edit(`"version": 2`, `"version": 2, "version": 2`), false},
		"key twice":      {edit(`"agent": "a1"`, `"agent": "a1", "agent": "a1"`), false},
		"key and KEY":    {edit(`"agent": "a1"`, `"agent": "a1", "AGENT": "a2"`), false},
		"host":           {edit(`"host": "new.example"`, `"host": "evil.example"`), false},
		"digest":         {edit(`"digest": "sha256:`, `"digest": "sha256:0`), false},
		"change":         {edit(`{host: new.example, ports: [443]}`, `{host: \"*\"}`), false},
		"two rules":      {edit(`ports: [443]}`, `ports: [443]}, {host: x.example}`), false},
		"grant's host":   {edit(`"host": "h.example"`, `"host": "H.example"`), false},
		"grant's star":   {edit(`"host": "h.example"`, `"host": "*"`), false},
		"scope":          {edit(`"scope": "always"`, `"scope": "ever"`), false},
		"session":        {edit(`"scope": "always"`, `"scope": "session"`), false},
		"once":           {edit(`"scope": "always"`, `"scope": "once"`), false},
		"deny always":    {edit(`"allow": true`, `"allow": false`), false},
		"no operator":    {edit(`"operator": "ada"`, `"operator": ""`), false},
		"v1 port":        {strings.Replace(v1, "443", "0", 1), false},
	} {
		file := filepath.Join(t.TempDir(), "approvals.json")
		if err := os.WriteFile(file, []byte(x.text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(Config{File: file, Recorder: &notes{}})
		if (err == nil) != x.ok || err != nil && (!strings.Contains(err.Error(), file) || b != nil) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("a book without a ledger was opened")
	}
}

// An approval of version 1 goes on as it was.
func TestVersion1(t *testing.T) {
	d := newDesk(t, func(c *Config) {
		v1 := `{"version":1,"approvals":[{"agent":"a1","policy":"p","host":"new.example","port":443,"operator":"o","time":"2026-01-02T03:04:05Z"}]}`
		if err := os.WriteFile(c.File, []byte(v1), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if g := d.Standing(); len(g) != 1 || g[0].Scope != Always || g[0].Operator != "o" || g[0].Time.Year() != 2026 {
		t.Errorf("got %+v", g)
	}
	for _, binary := range []string{"", "/usr/bin/curl"} { // it was for any program
		if !d.Covers(base(func(q *Question) { q.Binary = binary })) {
			t.Errorf("%q: forgotten", binary)
		}
	}
}

// The same approval twice is a mistake of somebody's editor.
func TestTwice(t *testing.T) {
	good := written(t)
	i := strings.LastIndex(good, "    {\n")
	j := strings.LastIndex(good, "    }") + len("    }")
	one := good[i:j]
	twice := good[:j] + ",\n" + strings.Replace(one, `"id": "`, `"id": "x`, 1) + good[j:]
	if _, err := parse([]byte(twice)); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("got %v", err)
	}
}

// FuzzParse: whatever is read is refused, or written back as the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":2,"pending":[],"grants":[]}`))
	f.Add([]byte(`{"version":1,"approvals":[{"agent":"a","policy":"p","host":"h.example","port":443,"operator":"o","time":"2026-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"version":2,"grants":[{"id":"x","agent":"a","host":"h.example","port":1,"allow":true,"scope":"session","policy":"p","life":"l","operator":"o","time":"2026-01-02T03:04:05Z"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(b)
		if err != nil {
			return
		}
		s.Version = 2
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(out)
		if err != nil {
			t.Fatalf("%s\n%s: %v", b, out, err)
		}
		if twice, err := json.Marshal(again); err != nil || string(twice) != string(out) {
			t.Errorf("%s\nbecame\n%s, %v", out, twice, err)
		}
	})
}
