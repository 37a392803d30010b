package bundle

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// refused builds, and wants a refusal that names each of want.
func (s *site) refused(t *testing.T, want ...string) {
	t.Helper()
	_, err := s.build(t)
	var r *licence.RefusedError
	if !errors.As(err, &r) || len(r.Missing) != len(want) {
		t.Fatalf("got %v, want a refusal for %q", err, want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q", err, w)
		}
	}
}

// TestTerms: what may not be handed on is refused until somebody decides, and
// the decision stands in lock and release, for that text only.
func TestTerms(t *testing.T) {
	s := newSite(t)
	write(t, filepath.Join(s.dir, "eula.txt"), []byte("You may.\n"))
	s.recipe(t, `{name: rules, kind: policy, source: "file:rules.yaml", licence: LicenseRef-Acme, terms: eula.txt}`,
		`{name: tool, kind: file, source: "file:clawbox.bin", licence: MIT OR Apache-2.0, redistributable: true}`,
		`{name: own, kind: file, source: "file:clawbox.bin"}`)
	s.refused(t, "--accept-terms rules", "--for-own-use rules", "--for-own-use own")
	s.opt.Consent = Consent{Terms: []string{"rules"}, By: "Jane Doe"}
	s.refused(t, "--for-own-use rules", "--for-own-use own")
	s.opt.Consent.OwnUse = []string{"rules", "own"}
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	r := s.mustBuild(t)
	s.opt.Consent = Consent{}
	first := tree(t, s.opt.Out)
	if again := s.mustBuild(t); len(again.Items[0].Accepted) != 2 {
		t.Errorf("the lock holds %+v", again.Items[0].Accepted)
	}
	lock := string(read(t, filepath.Join(s.dir, "bundle.lock")))
	for _, want := range []string{"acceptances:", "by: Jane Doe", "what: eula", "2023-11-14T22:13:20Z"} {
		if !strings.Contains(lock, want) {
			t.Errorf("no %q in the lock:\n%s", want, lock)
		}
	}
	if a := r.Items[0].Accepted; r.Items[0].Terms == "" || a[0].SHA256 != r.Items[0].Terms || a[1].What != licence.OwnUse || len(r.Items[1].Accepted) != 0 {
		t.Errorf("got %+v", r.Items)
	}
	var out bytes.Buffer
	i, err := Inspect(s.trust, s.opt.Out)
	if err != nil || i.Print(&out) != nil || !strings.Contains(out.String(), "accepted by Jane Doe, 2023-11-14") || !strings.Contains(out.String(), "same organisation only, as Jane Doe decided") {
		t.Errorf("%v\n%s", err, out.String())
	}
	s.opt.UpdateLock = true // decisions outlive what was resolved
	s.mustBuild(t)
	if got := tree(t, s.opt.Out); got["clawbox/release.note"] != first["clawbox/release.note"] {
		t.Error("another release")
	}
	write(t, filepath.Join(s.dir, "eula.txt"), []byte("You may not.\n"))
	s.refused(t, "--accept-terms rules")
}

// TestConsentRefused: decisions about nothing, by nobody, or in a lock that
// doesn't fit.
func TestConsentRefused(t *testing.T) {
	s := newSite(t)
	s.recipe(t, `{name: own, kind: file, source: "file:clawbox.bin"}`)
	for name, c := range map[string]Consent{
		"nobody": {OwnUse: []string{"own"}}, "no item": {OwnUse: []string{"other"}, By: "x"},
		"no terms": {Terms: []string{"own"}, By: "x"}, "control": {OwnUse: []string{"own"}, By: "x\x1b[2J"},
	} {
		s.opt.Consent = c
		if _, err := s.build(t); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s.opt.Consent = Consent{OwnUse: []string{"own"}, By: "x"}
	s.mustBuild(t)
	s.opt.Consent = Consent{}
	path := filepath.Join(s.dir, "bundle.lock")
	good := string(read(t, path))
	for name, c := range map[string]struct{ old, new, want string }{
		"by nobody":     {"by: x", `by: ""`, "who accepted it"},
		"other item":    {"item: own", "item: else", "an acceptance for an item that the recipe lacks"},
		"unknown field": {"what: own-use", "whet: own-use", "unknown field"},
		"taken out":     {good[strings.Index(good, "acceptances:"):], "", "--for-own-use own"},
	} {
		write(t, path, []byte(strings.Replace(good, c.old, c.new, 1)))
		if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestRecipeTerms: each mistake is named with its line.
func TestRecipeTerms(t *testing.T) {
	for src, want := range map[string]string{
		`licence: Apache2`:                                     `"Apache2" is not on SPDX's list`,
		`licence: "MIT OR"`:                                    "a licence is missing",
		`terms: "sha256:short"`:                                "64 lower-case hex digits",
		`allowedKeys: [{fingerprint: xyz, why: x}]`:            "16 hex digits",
		`allowedKeys: [{fingerprint: 0123456789abcdef}]`:       "why a key is allowed",
		`pickles: true`:                                        "models only",
		`exclude: ["*.bin"]`:                                   "from a folder (dir:) only",
		`target: {gpu: h200}`:                                  "from a folder (dir:) only",
		`kind: sbom`:                                           "file, policy, debs, image or model",
		`kind: model, source: "dir:x", target: {gpu: voodoo2}`: "h100-80gb",
		`kind: model, source: "dir:x", profiles: [{name: a}]`:  "target.gpu",
		`kind: model, source: "dir:x", target: {gpu: h200}, profiles: [{name: ../a}]`: "a folder or a file in",
		`kind: debs, source: "file:x"`:                                           "one of deb:FILE",
		`kind: debs, source: "deb:x", sha256: "` + strings.Repeat("a", 64) + `"`: "for files and policies only",
	} {
		item := `name: x, ` + src
		if !strings.HasPrefix(src, "kind") {
			item += `, kind: file`
		}
		if !strings.Contains(src, "source") {
			item += `, source: "file:x"`
		}
		_, err := ParseRecipe("r.yaml", []byte(demoRecipe+"  - {"+item+"}\n"))
		var se *SyntaxError
		if !errors.As(err, &se) || se.Line != 10 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in line 10", src, err, want)
		}
	}
}

// TestReleaseTerms: a signed release whose decisions make no sense is refused
// by its reader.
func TestReleaseTerms(t *testing.T) {
	for name, change := range map[string]func(*manifest.Item){
		"other item":   func(it *manifest.Item) { it.Accepted[0].Item = "else" },
		"nobody":       func(it *manifest.Item) { it.Accepted[0].By = "" },
		"terms":        func(it *manifest.Item) { it.Terms = "x" },
		"key":          func(it *manifest.Item) { it.AllowedKeys = []manifest.AllowedKey{{Fingerprint: "x", Why: "y"}} },
		"model's fact": func(it *manifest.Item) { it.Model = &manifest.Model{} },
	} {
		s := newSite(t)
		s.recipe(t, `{name: own, kind: file, source: "file:clawbox.bin"}`)
		s.opt.Consent = Consent{OwnUse: []string{"own"}, By: "x"}
		s.mustBuild(t)
		path := filepath.Join(s.opt.Out, topDir, noteFile)
		r, _, err := manifest.Unverified(read(t, path))
		if err != nil {
			t.Fatal(err)
		}
		change(&r.Items[0])
		if note, err := manifest.Sign(r, s.opt.Signers...); err == nil {
			write(t, path, note)
			if _, err := OpenMedia(s.trust, s.opt.Out); err == nil {
				t.Errorf("%s: opened", name)
			}
		}
	}
}
