package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// Options are what Verify compares the log with.
type Options struct {
	// Anchors are checkpoints of this log that were kept elsewhere (USB, SIEM,
	// a witness). The log must extend every one of them.
	Anchors [][]byte
}

// Report says what Verify has seen, all of it good.
type Report struct {
	Size       int64     `json:"size"` // entries
	Root       tlog.Hash `json:"root"`
	Checkpoint string    `json:"checkpoint"` // keep a copy elsewhere: it is the next Verify's anchor
	// Unpublished entries came after the checkpoint file, all of them under
	// signed checkpoints in the wal. A service that stopped in order leaves
	// none; one that runs, was killed, or was copied while it ran leaves up to
	// a second's.
	Unpublished int64 `json:"unpublished"`

	Live    bool  `json:"live"` // a service is writing; what came after the start isn't in here
	Bundles int64 `json:"bundles"`
	Tiles   int64 `json:"tiles"`
	Commits int   `json:"commits"` // in the wal
	Anchors int   `json:"anchors"`
}

// Verify computes the whole log anew from the bytes of its entries and
// compares every tile of every level, every signed checkpoint, every anchor
// and the list of files. It changes nothing and takes no lock that would stop
// the service. The error is a *Fault, a failure to read, or about an anchor
// that isn't a signed note at all.
//
// On a log that a service is writing it verifies the state at the start and
// tolerates growth only: a commit under way at the end of the wal, the
// files of a rotation. What an earlier, complete checkpoint stated is never
// tolerated to be missing. On a log at rest, which may be a copy, the wal may
// be ahead of the checkpoint file (never behind), but only by whole commits.
func Verify(dir string, v note.Verifier, o Options) (Report, error) {
	dir = filepath.Clean(dir)
	var as []Head
	for i, b := range o.Anchors {
		h, err := anchored(v)(b)
		if err != nil {
			return Report{}, fmt.Errorf("verify ledger: %w", badAnchor(i, err))
		}
		as = append(as, h)
	}
	live, err := busy(dir)
	if err != nil {
		return Report{}, fmt.Errorf("verify ledger: %w", err)
	}
	r, err := verify(dir, v, as, live)
	if err != nil && !live {
		// A service may have started meanwhile, and what looked like damage is
		// its work.
		if now, e := busy(dir); e == nil && now {
			r, err = verify(dir, v, as, true)
		}
	}
	if err != nil {
		return Report{}, fmt.Errorf("verify ledger %s: %w", dir, err)
	}
	return r, nil
}

// badAnchor tells a note that the log's key didn't sign, which speaks against
// the log or the anchor, from a file that isn't a note, which is a slip.
func badAnchor(i int, err error) error {
	var unknown *note.UnverifiedNoteError
	var wrong *note.InvalidSignatureError
	if errors.As(err, &unknown) || errors.As(err, &wrong) {
		return &Fault{fmt.Sprintf("anchor %d", i), -1, err.Error(), askAnchor}
	}
	return fmt.Errorf("anchor %d: %w: want a copy of this log's checkpoint, as clawbox audit anchor prints it", i, err)
}

// busy says whether somebody writes to the log.
func busy(dir string) (bool, error) {
	f, err := lockDir(dir, unix.LOCK_SH)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

// verifier is one run over a log.
type verifier struct {
	dir    string
	live   bool
	wal    *walImage
	p      peaks
	levels [][]tlog.Hash // the unfinished tile of each level
	want   []claim
	r      Report
}

// claim is a root that somebody stated.
type claim struct {
	Head
	file string
}

func verify(dir string, v note.Verifier, as []Head, live bool) (Report, error) {
	open := strict(v)
	cp, err := readCheckpoint(dir, open) // before the wal, which can only be ahead of it
	if err != nil {
		return Report{}, err
	}
	w, err := readWal(dir, open)
	if err != nil {
		return Report{}, err
	}
	f := &verifier{dir: dir, live: live, wal: w, want: []claim{{cp, checkpointFile}}}
	for i, a := range as {
		f.want = append(f.want, claim{a, fmt.Sprintf("anchor %d", i)})
	}
	f.r = Report{Live: live, Commits: len(w.commits), Anchors: len(as)}
	err = f.run(cp)
	return f.r, err
}

func (f *verifier) run(cp Head) error {
	if err := covers(f.wal, cp); err != nil {
		return err
	}
	if err := f.atRest(); err != nil {
		return err
	}
	if err := f.claims(); err != nil { // those of size 0
		return err
	}
	for n := range f.wal.start() / width {
		if err := f.bundle(n); err != nil {
			return err
		}
	}
	if err := f.wal.checkCommits(&f.p, func(int64, *peaks) error { return f.claims() }); err != nil {
		return err
	}
	for _, c := range f.want {
		if c.Size > f.p.n {
			return &Fault{c.file, f.p.n, fmt.Sprintf("states %d entries, the log has %d", c.Size, f.p.n), restore}
		}
	}
	h := f.wal.head()
	f.r.Size, f.r.Root, f.r.Checkpoint = h.Size, h.Root, string(h.Checkpoint)
	f.r.Unpublished = h.Size - cp.Size
	return f.files()
}

// atRest refuses what only a running service may leave behind.
func (f *verifier) atRest() error {
	w := f.wal
	switch {
	case f.live:
		return nil
	case len(w.rest) > 0:
		return &Fault{walFile, w.bad, fmt.Sprintf("%d bytes at the end are under no signed checkpoint (%v)", len(w.rest), w.why), startOnce}
	case w.full():
		return &Fault{walFile, -1, "holds a full bundle that was not moved to its tile", startOnce}
	}
	return nil
}

// claims compares the roots that are stated for the present size.
func (f *verifier) claims() error {
	for _, c := range f.want {
		if c.Size == f.p.n && c.Root != f.p.root() {
			return &Fault{c.file, c.Size - 1, fmt.Sprintf("states root %v for %d entries, the log has %v", c.Root, c.Size, f.p.root()), restore}
		}
	}
	return nil
}

// bundle recomputes bundle n and every tile that it completes.
func (f *verifier) bundle(n int64) error {
	name := tilePath(-1, n)
	b, err := readPlain(f.dir, name, maxTile)
	if err != nil {
		return err
	}
	es, err := splitBundle(b)
	if err == nil && len(es) != width {
		err = fmt.Errorf("holds %d entries, want %d", len(es), width)
	}
	if err != nil {
		return &Fault{name, n*width + int64(len(es)), err.Error(), restore}
	}
	hs := make([]tlog.Hash, width)
	for i, e := range es {
		hs[i] = tlog.RecordHash(e)
		f.p.add(hs[i])
		if err := f.claims(); err != nil {
			return err
		}
	}
	f.r.Bundles++
	return f.tile(0, n, hs)
}

// tile compares tile n of a level with the hashes that it must hold, and
// goes on upwards.
func (f *verifier) tile(level int, n int64, hs []tlog.Hash) error {
	name := tilePath(level, n)
	b, err := readPlain(f.dir, name, maxTile)
	if err != nil {
		return err
	}
	for i, h := range hs {
		at := i * tlog.HashSize
		if len(b) < at+tlog.HashSize || !bytes.Equal(b[at:at+tlog.HashSize], h[:]) {
			return mismatch(level, n, i)
		}
	}
	if len(b) != tileSize {
		return &Fault{name, -1, fmt.Sprintf("has %d bytes, want %d", len(b), tileSize), restore}
	}
	f.r.Tiles++
	if len(f.levels) == level {
		f.levels = append(f.levels, nil)
	}
	f.levels[level] = append(f.levels[level], reduce(hs))
	if len(f.levels[level]) < width {
		return nil
	}
	hs, f.levels[level] = f.levels[level], nil
	return f.tile(level+1, n/width, hs)
}

// mismatch names the entry, or the first of the entries, that a tile's hash i
// isn't the hash of. Which of the two files was changed can't be told from
// them alone.
func mismatch(level int, n int64, i int) error {
	if level == 0 {
		return &Fault{tilePath(-1, n), n*width + int64(i), "entry does not have the hash that " + tilePath(0, n) + " holds", restore}
	}
	span := int64(1) << (8 * level)
	return &Fault{tilePath(level, n), (n*width + int64(i)) * span, fmt.Sprintf("hash %d is not that of the %d entries from here on", i, span), restore}
}
