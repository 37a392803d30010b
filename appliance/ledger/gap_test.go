package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDropEveryFrame takes each frame, each commit with its entries, and each
// stretch of checkpoints alone out of the wal. What is left has right checksums
// and, where only checkpoints are gone, right roots.
func TestDropEveryFrame(t *testing.T) {
	k := newKeys(t, "ledger.example")
	sound := smallLog(t, k, width+30, 4) // rotated once, so that the numbers don't begin at 0
	var kinds string
	frames(t, sound, func(fs [][2][]byte) [][2][]byte {
		for _, f := range fs {
			kinds += string(f[0])
		}
		return fs
	})
	if !strings.HasPrefix(kinds, "CEEEEC") || strings.Count(kinds, "C") < 8 {
		t.Fatalf("the wal holds %s", kinds)
	}
	gone := func(what string, out func(i int) bool) {
		dir := filepath.Join(t.TempDir(), "log")
		must(t, os.CopyFS(dir, os.DirFS(sound)))
		frames(t, dir, func(fs [][2][]byte) (left [][2][]byte) {
			for i, f := range fs {
				if !out(i) {
					left = append(left, f)
				}
			}
			return left
		})
		if f := refused(t, dir, k, what, Options{}); f.File != walFile {
			t.Errorf("%s: fault is %v", what, f)
		}
		if l, err := Open(dir, k.s, k.v); err == nil {
			l.Close()
			t.Errorf("%s: opened", what)
		}
	}
	for i, kind := range kinds {
		gone(fmt.Sprintf("without frame %d (%c)", i, kind), func(j int) bool { return j == i })
		if kind != frameCheckpoint || i == 0 {
			continue
		}
		from := strings.LastIndexByte(kinds[:i], frameCheckpoint)
		gone(fmt.Sprintf("without the commit of frames %d to %d", from+1, i), func(j int) bool { return j > from && j <= i })
		if last := len(kinds) - 1; i < last {
			gone(fmt.Sprintf("without the checkpoints from %d up to the last", i), func(j int) bool {
				return kinds[j] == frameCheckpoint && j >= i && j < last
			})
		}
	}
}

// TestCopyOfRunningLog: a copy that has whole commits after its checkpoint file
// holds, and the report says how much; the wal behind the file never does.
func TestCopyOfRunningLog(t *testing.T) {
	k := newKeys(t, "ledger.example")
	for _, c := range []struct{ old, now int }{{5, 5}, {5, 25}, {0, 10}, {200, 260}, {250, 600}, {512, 530}} {
		dir := smallLog(t, k, c.now, 5)
		copyFrom(smallLog(t, k, c.old, 5), checkpointFile)(t, dir)
		r, err := Verify(dir, k.v, Options{})
		if err != nil || r.Size != int64(c.now) || r.Unpublished != int64(c.now-c.old) {
			t.Errorf("%d of %d published: report %+v, %v", c.old, c.now, r, err)
		}
		if c.old == c.now {
			continue
		}
		add(walFile, "E")(t, dir)
		if f := refused(t, dir, k, "torn", Options{}); f.File != walFile {
			t.Errorf("%d of %d published, torn: %v", c.old, c.now, f)
		}
		dir = smallLog(t, k, c.old, 5)
		copyFrom(smallLog(t, k, c.now, 5), checkpointFile)(t, dir)
		if f := refused(t, dir, k, "cut", Options{}); f.File != walFile {
			t.Errorf("wal of %d, checkpoint of %d: %v", c.old, c.now, f)
		}
	}
	// Same entries, other commits: such a checkpoint was never this log's.
	dir := smallLog(t, k, 25, 5)
	copyFrom(smallLog(t, k, 20, 4), checkpointFile)(t, dir)
	if f := refused(t, dir, k, "other commits", Options{}); f.File != checkpointFile {
		t.Errorf("fault is %v", f)
	}
	if l, err := Open(dir, k.s, k.v); err == nil {
		l.Close()
		t.Error("opened with another log's checkpoint")
	}
}

// TestBadAnchor: an anchor that the key didn't sign speaks against the log, one
// that isn't a note is a slip.
func TestBadAnchor(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := smallLog(t, k, 5, 5)
	good := readFile(t, dir, checkpointFile)
	other := readFile(t, smallLog(t, newKeys(t, "ledger.example"), 5, 5), checkpointFile)
	for name, b := range map[string][]byte{"changed": bytes.Replace(good, []byte("\n5\n"), []byte("\n4\n"), 1), "other key": other} {
		if f := refused(t, dir, k, name, Options{Anchors: [][]byte{good, b}}); f.File != "anchor 1" || f.Next != askAnchor {
			t.Errorf("%s: fault is %v", name, f)
		}
	}
	for _, b := range []string{"", "no note", string(good[:len(good)-1])} {
		_, err := Verify(dir, k.v, Options{Anchors: [][]byte{[]byte(b)}})
		var f *Fault
		if err == nil || errors.As(err, &f) || !strings.Contains(err.Error(), "want a copy of this log's checkpoint") {
			t.Errorf("%q: %v", b, err)
		}
	}
}
