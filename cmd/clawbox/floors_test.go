package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/clawbox/clawbox/"

// TestFloors holds docs/architecture.md's table against the code: a package
// imports only from lower floors, every package has a floor, and every row of
// the table is a package.
func TestFloors(t *testing.T) {
	floors := documentedFloors(t)
	seen := map[string]bool{}
	for _, p := range listImports(t) {
		mine, ok := floors[p.path]
		if !ok {
			t.Errorf("%s has no floor in docs/architecture.md", p.path)
			continue
		}
		seen[p.path] = true
		for _, imp := range p.imports {
			if f, ok := floors[imp]; ok && f >= mine {
				t.Errorf("%s (floor %d) imports %s (floor %d); imports go down only", p.path, mine, imp, f)
			}
		}
	}
	for p := range floors {
		if !seen[p] {
			t.Errorf("docs/architecture.md gives %s a floor, but there is no such package", p)
		}
	}
}

// TestWalls holds the imports that no floor forbids but the design does.
func TestWalls(t *testing.T) {
	walls := []struct{ from, never, why string }{
		{"installer", "appliance", "an old installer must be able to place a newer appliance"},
		{"appliance", "installer", "they meet in a configuration file"},
		{"appliance", "bundle", "the appliance knows the store, not the stick"},
		{"cmd/clawbox-launch", "policies", "the launcher reads compiled specs only"},
	}
	deps := map[string][]string{}
	for _, p := range listImports(t) {
		deps[p.path] = p.imports
	}
	for _, w := range walls {
		for _, imp := range deps[w.from] {
			if imp == w.never {
				t.Errorf("%s imports %s: %s", w.from, w.never, w.why)
			}
		}
	}
}

var (
	row    = regexp.MustCompile(`^\| (\d) \| (.+?) \|`)
	quoted = regexp.MustCompile("`([a-z0-9/-]+)`")
)

// documentedFloors reads the table of docs/architecture.md.
func documentedFloors(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	floors := map[string]int{}
	for line := range strings.Lines(string(b)) {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		for _, q := range quoted.FindAllStringSubmatch(m[2], -1) {
			floors[q[1]] = n
		}
	}
	if len(floors) < 15 {
		t.Fatalf("read %d floors from docs/architecture.md; the table's form changed", len(floors))
	}
	return floors
}

type pkg struct {
	path    string
	imports []string
}

// listImports asks go list for the module's packages, tests left out.
func listImports(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = "../.."
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("go list: %v\n%s", err, errs.String())
	}
	var ps []pkg
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		p := pkg{path: strings.TrimPrefix(f[0], module)}
		for _, imp := range f[1:] {
			if s, ok := strings.CutPrefix(imp, module); ok {
				p.imports = append(p.imports, s)
			}
		}
		ps = append(ps, p)
	}
	return ps
}
