package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/installer"
	"golang.org/x/mod/sumdb/note"
)

// planted is an appliance that keeps every kind of secret that there is, and
// whose logs have printed all of them.
func planted(t *testing.T) (root string, secrets map[string]string, log []byte) {
	t.Helper()
	root = t.TempDir()
	l := installer.Layout{Prefix: root}
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, "clawbox/test")
	if err != nil {
		t.Fatal(err)
	}
	secrets = map[string]string{
		"ledger key":       skey,
		"upstream key":     "sk-proj-" + strings.Repeat("Aa1", 16),
		"credential":       "ghp_" + strings.Repeat("Zz9", 12),
		"agent's token":    `tok"en/with+odd=chars`,
		"record's token":   "only-in-the-record-77",
		"url password":     "hunter2-in-url",
		"argument's token": "argument-secret-42",
		"pem":              "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIPmN0NPtQ2Zl5uzg0cWt8QvJY2eXcJ2T0dV0o8K7Xw1S\n-----END PRIVATE KEY-----\n",
	}
	put(l.LedgerS(), skey+"\n")
	put(l.LedgerV(), vkey+"\n")
	put(filepath.Join(root, "secret/upstream"), secrets["upstream key"]+"\n")
	put(filepath.Join(root, "secret/credential"), secrets["credential"]+"\n")
	c := config.Default(root)
	c.Release = config.Release{Name: "demo", Version: "1.0.0", Sequence: 1, Digest: "sha256:" + strings.Repeat("0", 64)}
	c.Paths.Slot = l.Slot("1.0.0", 1)
	c.Upstreams = map[string]config.Upstream{"x": {URL: "https://api.example.com/v1", KeyFile: filepath.Join(root, "secret/upstream")}}
	c.Credentials = map[string]config.Credential{"gh": {KeyFile: filepath.Join(root, "secret/credential")}}
	c.Agents = []config.Agent{{Name: "ada", Image: "ada:1.0.0", Policy: "sandbox", Args: []string{"run", "--token=" + secrets["argument's token"]}, Env: []string{"TOKEN=" + secrets["agent's token"]}}}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	put(l.Config(), string(b))
	rec, _ := json.Marshal(map[string]any{"name": "bob", "env": []string{"T=" + secrets["record's token"]}})
	put(filepath.Join(root, "var/lib/clawbox/agents/bob/agent.json"), string(rec))
	put(filepath.Join(root, "var/lib/clawbox/agents/bob/output.log"), "OUTPUT-OF-AN-AGENT")
	put(filepath.Join(root, "var/lib/clawbox/ledger/checkpoint"), "origin\n7\nroot\n")
	for kind, s := range secrets {
		if kind == "url password" || kind == "pem" {
			continue
		}
		q, _ := json.Marshal(s)
		log = fmt.Appendf(log, "%s: %s %s %s %s\n", kind, s, q, base64.StdEncoding.EncodeToString([]byte(s)), url.QueryEscape(s))
	}
	put(l.TrialLog(), string(log))
	put(l.Changes(), "")
	put(l.Kept(), secrets["pem"]) // where nobody expects one
	return root, secrets, log
}

// Nothing of any secret is in the archive, in no form, and the scanner finds
// nothing either; what is useful is there.
func TestNoSecrets(t *testing.T) {
	root, secrets, log := planted(t)
	var out bytes.Buffer
	long := append(bytes.Repeat([]byte("x"), 3*MaxFile), log...)
	list, err := Write(t.Context(), &out, root, Options{Version: "9.9.9", Findings: "installed " + secrets["credential"], Facts: secrets, Log: func(context.Context) ([]byte, error) { return long, nil }})
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for name, b := range files {
		for kind, s := range secrets {
			q, _ := json.Marshal(s)
			for _, form := range []string{s, string(q[1 : len(q)-1]), base64.StdEncoding.EncodeToString([]byte(s)), url.QueryEscape(s)} {
				if strings.Contains(string(b), form) {
					t.Errorf("%s holds the %s as %q", name, kind, form)
				}
			}
		}
		sc := licence.NewScanner(licence.Place{File: name}, func(f licence.Finding) { t.Errorf("the scanner finds %s", f) })
		sc.Write(b)
		sc.Close()
		if strings.Contains(string(b), "OUTPUT-OF-AN-AGENT") {
			t.Errorf("%s holds an agent's output", name)
		}
		if len(b) > MaxFile+100 {
			t.Errorf("%s has %d bytes", name, len(b))
		}
	}
	for name, word := range map[string]string{
		"version.txt": "9.9.9", "doctor.txt": "installed", "configuration.yaml": "api.example.com", "ledger-checkpoint": "root",
		"trial.log": removed, "service.log": "left out", "LIST.txt": "left out  kept.json: it holds key material",
	} {
		if !strings.Contains(string(files[name]), word) {
			t.Errorf("%s lacks %q:\n%.300s", name, word, files[name])
		}
	}
	if !strings.Contains(string(files["configuration.yaml"]), "TOKEN="+removed) {
		t.Errorf("the configuration is\n%s", files["configuration.yaml"])
	}
	if len(list) != len(contents) {
		t.Errorf("got a list of %d, want %d", len(list), len(contents))
	}
}

// Without anything installed there is an archive all the same; a failing log
// leaves itself out.
func TestBrokenHost(t *testing.T) {
	var out bytes.Buffer
	_, err := Write(t.Context(), &out, t.TempDir(), Options{Log: func(context.Context) ([]byte, error) { return nil, errors.New("no journal") }})
	if err != nil {
		t.Fatal(err)
	}
	if b := unpack(t, out.Bytes())["LIST.txt"]; !strings.Contains(string(b), "service.log: no journal") {
		t.Errorf("the list is\n%s", b)
	}
	if _, err := Write(t.Context(), full{}, t.TempDir(), Options{}); err == nil {
		t.Error("a full disk was not noticed")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// What could be secret in a configuration is replaced even if no list knows it.
func TestPlain(t *testing.T) {
	us := plainUpstreams(map[string]config.Upstream{"a": {URL: "https://u:hunter2@h/v1?key=k"}, "b": {URL: "http://[bad"}})
	if us["a"].URL != "https://h/v1" || us["b"].URL != removed {
		t.Errorf("got %+v", us)
	}
	if got := plainArgs([]string{"prog", "--token", "x"}); strings.Join(got, " ") != "prog "+removed+" "+removed {
		t.Errorf("got %q", got)
	}
}

func unpack(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[strings.TrimPrefix(h.Name, "clawbox-support/")], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
