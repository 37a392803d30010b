package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/spf13/cobra"
)

// hostile is a line that hides what stands before it, another line, a C1 control
// and a bidi override.
const hostile = "\x1b[2K\rall is well\x1b[8m\nclawbox: all is well\u009b8m\u202e"

// wantLegible fails when s would do anything but show characters.
func wantLegible(t *testing.T, what, s string) {
	t.Helper()
	bad := func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }
	if i := strings.IndexFunc(s, bad); i >= 0 {
		t.Errorf("%s: byte %d is not printable: %q", what, i, s)
	}
	if strings.Contains(s, "\nclawbox: all is well") {
		t.Errorf("%s: a line of somebody else's: %q", what, s)
	}
}

func TestErrorsAreLegible(t *testing.T) {
	var b bytes.Buffer
	if code := report(context.Background(), &b, &manifest.TamperedError{What: hostile, Detail: hostile}); code != exitUntrusted {
		t.Errorf("status %d, want %d", code, exitUntrusted)
	}
	wantLegible(t, "an error", b.String())
}

// TestEveryVerbIsLegible: what a verb prints goes through an escaper, whatever
// comes before the verb.
func TestEveryVerbIsLegible(t *testing.T) {
	var all func(c *cobra.Command)
	all = func(c *cobra.Command) {
		if c.PersistentPreRunE != nil || c.PersistentPreRun != nil {
			c.SetOut(&bytes.Buffer{})
			c.SetErr(&bytes.Buffer{})
			if c.PersistentPreRunE == nil || c.PersistentPreRunE(c, nil) != nil {
				t.Errorf("%s: has another beginning than app.begin", c.CommandPath())
			}
			_, out := c.OutOrStdout().(escaper)
			_, errs := c.ErrOrStderr().(escaper)
			if !out || !errs {
				t.Errorf("%s prints what strangers chose as it is: call app.begin", c.CommandPath())
			}
		}
		for _, sub := range c.Commands() {
			all(sub)
		}
	}
	all(newRoot())
}

func TestModelsAreLegible(t *testing.T) {
	dir := t.TempDir()
	src, store := filepath.Join(dir, "src"), filepath.Join(dir, "store")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	weightFile(t, filepath.Join(src, "model.safetensors"))
	said, err := json.Marshal(map[string]any{"architectures": []string{hostile}, "auto_map": map[string]string{"AutoModel": hostile}})
	if err != nil {
		t.Fatal(err)
	}
	for n, b := range map[string][]byte{"config.json": said, "m.py": nil, "\u202eyp.x": []byte("#!/bin/sh\n")} {
		if err := os.WriteFile(filepath.Join(src, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, form := range []string{"text", "json"} {
		for _, args := range [][]string{{"import", src, "--name", "small"}, {"list"}, {"verify"}} {
			args = append(append([]string{"model"}, args...), "--store", store, "--output", form)
			out, err := clawbox(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			wantLegible(t, strings.Join(args, " "), out)
			if lines := strings.Count(out, "\n"); form == "text" && args[1] == "list" && lines != 2 {
				t.Errorf("%d lines, want a heading and a model: %q", lines, out)
			}
		}
	}
	out, err := clawbox(t, "model", "list", "--store", store, "-o", "json")
	var ms []modelJSON
	if err != nil || json.Unmarshal([]byte(out), &ms) != nil || ms[0].Facts.Architecture != hostile {
		t.Errorf("JSON is to keep what was said: %v %q", err, out)
	}
}

// TestExact: bytes for a program stay as they are when no terminal shows them.
func TestExact(t *testing.T) {
	var b bytes.Buffer
	exact(escaper{&b}).Write([]byte(hostile))
	if b.String() != hostile {
		t.Errorf("got %q", b.String())
	}
}
