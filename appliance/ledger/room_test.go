package ledger

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// walOf is the wal's length and how much of it is zeros at its end.
func walOf(t *testing.T, dir string) (length, room int) {
	t.Helper()
	b := readFile(t, dir, walFile)
	return len(b), len(b) - len(bytes.TrimRight(b, "\x00"))
}

// TestRoomIsMadeAhead: while a log is written its wal ends in zeros, which
// commits go into; a log that was closed ends in its last commit.
func TestRoomIsMadeAhead(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Create(dir, k.s)
	must(t, err)
	grown, last := 0, 0
	for i := range 600 {
		must(t, l.Record(context.Background(), tiny(i)))
		n, room := walOf(t, dir)
		if n%walStep != 0 || room >= walStep {
			t.Fatalf("wal of %d bytes, %d of them zeros", n, room)
		}
		if n != last {
			grown, last = grown+1, n
		}
	}
	if grown > last/walStep || grown == 0 {
		t.Errorf("grew %d times to %d bytes", grown, last)
	}
	must(t, l.Close())
	if n, room := walOf(t, dir); room != 0 || n > last {
		t.Errorf("closed, with %d bytes and %d zeros", n, room)
	}
}

// TestRoomIsZeros: what a killed service leaves holds, and nothing that looks
// nearly like it.
func TestRoomIsZeros(t *testing.T) {
	k := newKeys(t, "ledger.example")
	running := newLog(t, k, 0, 1)
	w, _, err := load(&osDisk{dir: running}, running, k.s, k.v)
	must(t, err)
	for i := range 40 {
		_, err := w.commit([][]byte{fmt.Appendf(nil, "e%d", i)})
		must(t, err)
	}
	killed := func() string {
		dir := filepath.Join(t.TempDir(), "log")
		must(t, os.CopyFS(dir, os.DirFS(running)))
		return dir
	}
	dir := killed()
	n, room := walOf(t, dir)
	if room == 0 {
		t.Fatal("no room to look at")
	}
	r, err := Verify(dir, k.v, Options{})
	must(t, err)
	if r.Size != 40 {
		t.Errorf("report %+v", r)
	}
	for i := n - room; i < n; i += 1009 {
		dir := killed()
		flipAt(t, dir, i)
		if f := refused(t, dir, k, fmt.Sprintf("zero %d", i-n+room), Options{}); f.File != walFile || f.Next != startOnce {
			t.Errorf("zero %d: fault is %v", i-n+room, f)
		}
		must(t, os.RemoveAll(dir))
	}
	for name, c := range map[string]func(*testing.T, string){
		"one less":  cut(walFile, -1),
		"one more":  add(walFile, "\x00"),
		"a step":    add(walFile, strings.Repeat("\x00", walStep)),
		"some left": cut(walFile, int64(n-room+1)),
	} {
		dir := killed()
		c(t, dir)
		if f := refused(t, dir, k, name, Options{}); f.File != walFile {
			t.Errorf("%s: fault is %v", name, f)
		}
		l, err := Open(dir, k.s, k.v) // a power cut can leave that
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if h := l.Head(); h.Size != 40 {
			t.Errorf("%s: %d entries", name, h.Size)
		}
		must(t, l.Close())
		_, err = Verify(dir, k.v, Options{})
		must(t, err)
	}
	dir = killed()
	must(t, os.Truncate(filepath.Join(dir, walFile), int64(n-room-1)))
	add(walFile, strings.Repeat("\x00", room+1))(t, dir) // the last byte of the last commit
	refused(t, dir, k, "last byte", Options{})
}

// TestLargeEntries: a wal rotates before it has walEntries where they are large,
// and never grows past what readers take.
func TestLargeEntries(t *testing.T) {
	k := newKeys(t, "ledger.example")
	for _, step := range []int{7, 3 * width} {
		dir := filepath.Join(t.TempDir(), "log")
		l, err := Create(dir, k.s)
		must(t, err)
		r := tiny(1)
		r.Detail = strings.Repeat("x", 50<<10)
		const n = 2*width + 10
		for i := 0; i < n; i += step {
			rs := make([]Record, min(step, n-i))
			for j := range rs {
				rs[j] = r
			}
			must(t, l.Record(context.Background(), rs...))
			if size, _ := walOf(t, dir); size > maxWal {
				t.Fatalf("wal of %d bytes", size)
			}
		}
		must(t, l.Close())
		rep, err := Verify(dir, k.v, Options{})
		must(t, err)
		if rep.Size != n || rep.Bundles != 2 {
			t.Errorf("steps of %d: report %+v", step, rep)
		}
	}
}
