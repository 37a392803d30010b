package main

import (
	"cmp"
	"errors"
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
)

// pages are all that tell people what to type.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range append(paths, "../../README.md") {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[p] = string(b)
	}
	return out
}

var (
	shell  = regexp.MustCompile("(?ms)^```sh( run)?\n(.*?)^```$")
	inline = regexp.MustCompile("`(clawbox [^`\n]+)`")
	// command finds where one begins and ends in a line of a shell.
	command = regexp.MustCompile(`(?:^|[|;&(]\s*)(?:dist/)?(clawbox [^|;&><#]*)`)
)

// TestDocumentedCommands: each command line in the documents names a verb and
// flags that are there; one in a block of commands is complete.
func TestDocumentedCommands(t *testing.T) {
	n := 0
	for path, text := range pages(t) {
		for _, block := range shell.FindAllStringSubmatch(text, -1) {
			for line := range strings.Lines(block[2]) {
				for _, m := range command.FindAllStringSubmatch(line, -1) {
					n++
					if err := parses(m[1], true); err != nil {
						t.Errorf("%s: %s\n%v", path, m[1], err)
					}
				}
			}
		}
		for _, m := range inline.FindAllStringSubmatch(shell.ReplaceAllString(text, ""), -1) {
			line := command.FindStringSubmatch(m[1])
			n++
			if err := parses(line[1], false); err != nil {
				t.Errorf("%s: `%s`\n%v", path, m[1], err)
			}
		}
	}
	if n < 100 {
		t.Errorf("found %d command lines; did the documents' form change?", n)
	}
}

// parses holds a command line against the tree of verbs. whole: also arguments
// and flags that must be there.
func parses(line string, whole bool) error {
	args := words(line)[1:]
	c, rest, err := newRoot().Find(args)
	if err != nil {
		return err
	}
	if c.DisableFlagParsing || slices.Contains(rest, "--help") {
		return nil
	}
	if err := c.ParseFlags(rest); err != nil && (whole || !errors.Is(err, pflag.ErrHelp) && !strings.Contains(err.Error(), "needs an argument")) {
		return err
	}
	// A group of verbs has no arguments of its own, unless it says so.
	if got := c.Flags().Args(); c.HasSubCommands() && c.Args == nil && (len(got) > 0 || whole) {
		return fmt.Errorf("%s has no verb %q", c.CommandPath(), got)
	}
	if !c.Runnable() {
		return fmt.Errorf("%s does nothing", c.CommandPath())
	}
	if !whole {
		return nil
	}
	return errors.Join(c.ValidateArgs(c.Flags().Args()), c.ValidateRequiredFlags(), c.ValidateFlagGroups())
}

// words splits a line as a shell does, as far as the documents need it.
func words(line string) (out []string) {
	var quote rune
	cur, in := "", false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, in = r, true
		case quote == 0 && r <= ' ':
			if in {
				out = append(out, cur)
			}
			cur, in = "", false
		default:
			cur, in = cur+string(r), true
		}
	}
	if in {
		out = append(out, cur)
	}
	return out
}

// saidCommand finds a command line in what a program says.
var saidCommand = regexp.MustCompile("['`](clawbox [^'`\n]+)['`]")

// TestSaidCommands: what errors and help tell people to type is there, too.
func TestSaidCommands(t *testing.T) {
	n := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == "dist" {
			return cmp.Or(err, filepath.SkipDir)
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		lits, err := stringLiterals(path)
		for _, lit := range lits {
			for _, m := range saidCommand.FindAllStringSubmatch(lit, -1) {
				n++
				if err := parses(m[1], false); err != nil {
					t.Errorf("%s: %s\n%v", path, m[1], err)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 50 {
		t.Errorf("found %d command lines; did the sources' form change?", n)
	}
}

// stringLiterals are those of a Go file, unquoted; a sentence that is joined
// by + from several is several.
func stringLiterals(path string) (out []string, err error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s scanner.Scanner
	fset := token.NewFileSet()
	s.Init(fset.AddFile(path, -1, len(src)), src, nil, 0)
	for {
		_, tok, lit := s.Scan()
		if tok == token.EOF {
			return out, nil
		}
		if tok == token.STRING {
			v, err := strconv.Unquote(lit)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, lit, err)
			}
			out = append(out, v)
		}
	}
}

// TestParses: the check finds what it is for.
func TestParses(t *testing.T) {
	for _, line := range []string{"clawbox nothing", "clawbox audit verfy", "clawbox verify x --kye y", "clawbox verify", "clawbox key root init a", "clawbox registry serve a b"} {
		if err := parses(line, true); err == nil {
			t.Errorf("%s: taken", line)
		}
	}
	for _, line := range []string{"clawbox audit verfy", "clawbox bundle --sinse X"} {
		if err := parses(line, false); err == nil {
			t.Errorf("%s: taken in a sentence", line)
		}
	}
}

// TestOperations runs the blocks of the operations page that are marked for
// it, one after the other in one folder, with a recipe and an identity.
func TestOperations(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	script, n := "mkdir $WORK/media\n", 0
	for _, block := range shell.FindAllStringSubmatch(string(b), -1) {
		if block[1] == "" {
			continue
		}
		for line := range strings.Lines(block[2]) {
			n++
			script += "exec " + strings.ReplaceAll(line, " /media/", " $WORK/media/")
		}
	}
	if n < 20 {
		t.Fatalf("%d lines to run; did the page's form change?", n)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipe := `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: demo, version: %s}
sequence: %d
items:
  - {name: notes, kind: file, source: "file:notes.txt", path: share/notes.txt, licence: Apache-2.0, redistributable: true}
`
	script = "chmod 600 site.age\n" + script + "-- site.age --\n" + id.String() + "\n-- site.pub --\n" + id.Recipient().String() +
		"\n-- notes.txt --\nsome notes\n-- recipe.yaml --\n" + fmt.Sprintf(recipe, "1.0.0", 1) + "-- next.yaml --\n" + fmt.Sprintf(recipe, "1.1.0", 2)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "operations.txtar"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: dir})
}
