package bundle

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

// readLate makes files of any size wait for their place.
func readLate(t *testing.T) {
	t.Helper()
	was := lateFile
	t.Cleanup(func() { lateFile = was })
	lateFile = 1
}

// TestLateFiles: files that are read once, straight to their places, make the
// same bundle as files that are read before.
func TestLateFiles(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	want := tree(t, s.opt.Out)
	readLate(t)
	for _, more := range []string{"2", "3"} { // the second time in a work store that has seen them
		s.opt.Out += more
		s.opt.Rehash = true
		s.mustBuild(t)
		if !maps.Equal(want, tree(t, s.opt.Out)) {
			t.Errorf("%s: other bytes", s.opt.Out)
		}
	}
	s.opt.Rehash, s.opt.Store = false, s.opt.Store+"2"
	s.mustBuild(t)
	if !maps.Equal(want, tree(t, s.opt.Out)) {
		t.Error("with an empty work store: other bytes")
	}
}

// TestLateTwins: that two files are one blob is found too late for their places;
// the bundle is right all the same.
func TestLateTwins(t *testing.T) {
	readLate(t)
	s := newSite(t)
	for _, n := range []string{"a", "b"} {
		write(t, filepath.Join(s.dir, n), noise(7, 3<<20))
	}
	s.recipe(t, `{name: a, kind: file, source: "file:a", path: a, redistributable: true}`,
		`{name: b, kind: file, source: "file:b", path: b, redistributable: true}`,
		`{name: rules, kind: policy, source: "file:rules.yaml", redistributable: true}`)
	r := s.mustBuild(t)
	if r.Size() > 4<<20 {
		t.Errorf("%d bytes: the file is there twice", r.Size())
	}
	sound(t, s.load(t), 5)
}

// TestLatePin: a file that is not what the lock pins is refused, and nothing of
// it stays.
func TestLatePin(t *testing.T) {
	readLate(t)
	s := newSite(t)
	s.mustBuild(t)
	first := tree(t, s.opt.Out)
	flip(t, filepath.Join(s.dir, "clawbox.bin"), 100)
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "item clawbox no longer matches") {
		t.Errorf("got %v", err)
	}
	if !maps.Equal(first, tree(t, s.opt.Out)) {
		t.Error("a refused build changed the directory")
	}
}
