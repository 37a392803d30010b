package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// Open opens the log in dir for writing and takes it for this process alone.
// v must be the verifier of s's key.
//
// After a crash Open finishes what was under way: it completes a rotation,
// and it cuts a torn commit off the end, which nobody was told of, and
// records that it did. Anything else that doesn't fit is refused, never
// repaired: damage in the part that Open has to read (the checkpoint, the
// wal, the right edge of the tiles) is found here, all other by Verify.
func Open(dir string, s note.Signer, v note.Verifier) (*Log, error) {
	dir = filepath.Clean(dir)
	return openOn(&osDisk{dir: dir}, dir, s, v)
}

func openOn(d disk, dir string, s note.Signer, v note.Verifier) (*Log, error) {
	if s.Name() != v.Name() || s.KeyHash() != v.KeyHash() {
		return nil, fmt.Errorf("open ledger: signing key is %s+%08x, verifier is %s+%08x: use one pair", s.Name(), s.KeyHash(), v.Name(), v.KeyHash())
	}
	lock, err := takeDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	w, dropped, err := load(d, dir, s, v)
	if err == nil {
		err = w.settle(dropped)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger %s: %w", dir, err), lock.Close())
	}
	return start(*w, lock), nil
}

// takeDir locks dir. A Verify that looks for a writer holds it for a moment,
// so one refusal isn't the end.
func takeDir(dir string) (*os.File, error) {
	for i := 0; ; i++ {
		f, err := lockDir(dir, unix.LOCK_EX)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		if i == 20 {
			return nil, fmt.Errorf("%s is in use by another process: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// load reads the end of the log and checks that it hangs together. The second
// result is the torn commit at the end, if any.
func load(d disk, dir string, s note.Signer, v note.Verifier) (*writer, *tear, error) {
	open := strict(v)
	cp, err := readCheckpoint(dir, open)
	if err != nil {
		return nil, nil, err
	}
	wal, err := readWal(dir, open)
	if err != nil {
		return nil, nil, err
	}
	w := &writer{
		disk: d, signer: s, entries: wal.entries, most: walEntries, head: wal.head(), shown: cp.Size, wal: wal.good, used: int64(len(wal.good)),
		tiles: hashes{dir, wal.start(), wal.leaves}, made: map[string]bool{},
	}
	if w.peaks, err = w.tiles.peaks(wal.start()); err != nil {
		return nil, nil, err
	}
	if err := wal.checkCommits(&w.peaks, nil); err != nil {
		return nil, nil, err
	}
	if err := covers(wal, cp); err != nil {
		return nil, nil, err
	}
	// The wal may hold up to a second more than the checkpoint file, and begin
	// after it when a rotation was cut off.
	root, err := w.tiles.root(cp.Size)
	if err != nil {
		return nil, nil, err
	}
	if root != cp.Root {
		return nil, nil, &Fault{checkpointFile, -1, fmt.Sprintf("says root %v at size %d, the entries give %v", cp.Root, cp.Size, root), restore}
	}
	t, err := torn(wal, open)
	return w, t, err
}

// settle makes the loaded state the durable one. The wal is always written
// anew: after a failed flush the kernel may show bytes that the disk hasn't.
func (w *writer) settle(t *tear) error {
	for _, f := range []string{checkpointFile + ".new", walFile + ".new"} {
		if err := w.disk.do(op{verb: remove, path: f}); err != nil {
			return err
		}
	}
	if t != nil {
		return w.recover(t)
	}
	if w.due() { // a rotation was cut off
		return w.rotate()
	}
	return w.restart(w.wal)
}

// recover cuts the torn commit off and records it, in one step.
func (w *writer) recover(t *tear) error {
	host, _ := os.Hostname()
	e, err := encode(t.record(), host)
	if err != nil {
		return err
	}
	leaf := tlog.RecordHash(e)
	w.peaks.add(leaf)
	if w.head, err = signHead(w.signer, &w.peaks, w.head.Commit+1); err != nil {
		return err
	}
	w.entries, w.tiles.leaves = append(w.entries, e), append(w.tiles.leaves, leaf)
	b := appendFrame(bytes.Clone(w.wal), frameEntry, e)
	if err := w.restart(appendFrame(b, frameCheckpoint, w.head.Checkpoint)); err != nil {
		return err
	}
	if w.due() {
		return w.rotate()
	}
	return nil
}

// A tear is what a crash left behind the last commit.
type tear struct {
	bytes  int
	why    error
	signed Head // its own checkpoint, if that is whole
	end    int64
}

func (t *tear) record() Record {
	r := Record{
		Time: time.Now(), Kind: KindService, Reason: "ledger.recovered",
		Detail: fmt.Sprintf("cut %d bytes of a commit that was not finished, at entry %d: %v", t.bytes, t.end, t.why),
		Attrs:  map[string]any{"dropped_bytes": t.bytes},
	}
	if t.signed.Checkpoint != nil {
		r.Attrs["dropped_size"] = t.signed.Size
		r.Attrs["dropped_root"] = t.signed.Root.String()
	}
	return r
}

// torn decides whether the bytes after the last commit can come from a crash.
// Commits are written one after the other, each flushed before the next, so
// a crash can hit one only: a signed checkpoint in the middle of the bytes
// shows that the damage is older than the last commit. One at their very end
// can be honest (a power cut that lost an earlier page of the same commit);
// it is cut, and its size and root are recorded for an auditor to compare.
func torn(w *walImage, open opener) (*tear, error) {
	rest := bytes.TrimRight(w.rest, "\x00") // a checkpoint ends in a line
	if len(rest) == 0 {
		return nil, nil // room that a commit was making, at most
	}
	t := &tear{bytes: len(rest), why: w.why, end: w.bad}
	if w.full() {
		return nil, &Fault{walFile, t.end, fmt.Sprintf("%d bytes follow a full bundle", t.bytes), restore}
	}
	for i := range rest {
		h, n, ok := signedAt(rest[i:], open)
		if ok && i+n < len(rest) {
			return nil, &Fault{walFile, t.end, fmt.Sprintf("damaged (%v), though the commit of size %d was finished after it", w.why, h.Size), restore}
		}
		if ok {
			t.signed = h
		}
	}
	return t, nil
}

// signedAt looks for a whole checkpoint frame at the start of b.
func signedAt(b []byte, open opener) (h Head, n int, ok bool) {
	if len(b) == 0 || b[0] != frameCheckpoint {
		return h, 0, false
	}
	_, body, rest, err := nextFrame(b)
	if err != nil {
		return h, 0, false
	}
	h, err = open(body)
	return h, len(b) - len(rest), err == nil
}

// covers refuses a wal that doesn't go on from the checkpoint file: that must
// be one of the wal's commits, or older than all of them, as between the two
// renames of a rotation (its root is compared with the bundles elsewhere).
// What it states was answered, so a crash cannot have torn it off the wal.
func covers(w *walImage, cp Head) error {
	first, end := w.commits[0], w.head().Size
	if cp.Size <= end {
		if cp.Size < first.Size && cp.Commit < first.Commit {
			return nil
		}
		for _, h := range w.commits {
			if h.Size == cp.Size && h.Root == cp.Root && h.Commit == cp.Commit {
				return nil
			}
		}
		return &Fault{checkpointFile, -1, fmt.Sprintf("states %d entries at commit %d, which is not a commit in the wal", cp.Size, cp.Commit), restore}
	}
	what := fmt.Sprintf("has %d entries under signed checkpoints, the checkpoint file says %d", end, cp.Size)
	if w.why != nil {
		what += fmt.Sprintf(" (%v)", w.why)
	}
	return &Fault{walFile, w.bad, what, restore}
}

func readCheckpoint(dir string, open opener) (Head, error) {
	b, err := readPlain(dir, checkpointFile, maxEntry)
	if err != nil {
		return Head{}, err
	}
	h, err := open(b)
	if err != nil {
		return Head{}, &Fault{checkpointFile, -1, err.Error(), restore}
	}
	if !h.published {
		return Head{}, &Fault{checkpointFile, -1, fmt.Sprintf("is that of commit %d out of a wal, which was never published", h.Commit), restore}
	}
	return h, nil
}

func readWal(dir string, open opener) (*walImage, error) {
	b, err := readPlain(dir, walFile, maxWal)
	if err != nil {
		return nil, err
	}
	w, err := scanWal(b, open)
	if err != nil {
		return nil, &Fault{walFile, -1, err.Error(), restore}
	}
	return w, nil
}
