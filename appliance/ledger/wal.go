package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"golang.org/x/mod/sumdb/tlog"
)

// The wal is a magic line and frames:
//
//	kind (1 byte: E entry, C checkpoint) | length (2, big-endian) |
//	CRC-32C of kind, length and body (4, big-endian) | body
//
// It begins with the checkpoint of the tree that the full bundles hold, and
// each commit is one or more entries and the checkpoint over the tree that
// they make. The checkpoints are numbered without a gap, and no checkpoint file
// can be made of one (walLine). The checksum is
// there to tell a torn write from a changed one and to name the entry that
// was hit; what protects the bytes, and the number, is the checkpoint.
//
// Behind the last commit there may be zeros, fewer than walStep, up to a
// multiple of walStep: room that was made ahead, see writer.put.
const (
	walMagic  = "clawbox wal 2\n"
	frameHead = 7

	frameEntry      = 'E'
	frameCheckpoint = 'C'

	// The wal rotates when it holds walEntries, or a whole number of bundles
	// and walBytes: the files and flushes of a rotation cost as much as some
	// hundred entries do.
	walEntries = 8 * width
	walBytes   = 4 << 20

	// maxWal is more than can follow walBytes until a bundle is full: entries of
	// the largest size, each in its own commit.
	maxWal = walBytes + 2*width*(maxEntry+frameHead)

	walStep = 256 << 10
)

var zeros [walStep]byte

// padded is how long a wal of n bytes is with its zeros.
func padded(n int64) int64 { return (n + walStep - 1) / walStep * walStep }

// isFull says whether a wal of so many entries and bytes is one that rotates.
func isFull(entries int, bytes int64) bool {
	return entries == walEntries || entries > 0 && entries%width == 0 && bytes >= walBytes
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(b []byte, kind byte, body []byte) []byte {
	at := len(b)
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	sum := crc32.Update(crc32.Checksum(b[at:], castagnoli), castagnoli, body)
	b = binary.BigEndian.AppendUint32(b, sum)
	return append(b, body...)
}

// newWal is the image of a wal that continues from h.
func newWal(h Head) []byte {
	return appendFrame([]byte(walMagic), frameCheckpoint, h.Checkpoint)
}

// nextFrame cuts one frame off b. Its errors are those of a torn write.
func nextFrame(b []byte) (kind byte, body, rest []byte, err error) {
	if len(b) < frameHead {
		return 0, nil, b, fmt.Errorf("frame header has %d bytes, want %d", len(b), frameHead)
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if len(b) < frameHead+n {
		return 0, nil, b, fmt.Errorf("frame says %d bytes, %d are left", n, len(b)-frameHead)
	}
	body = b[frameHead : frameHead+n : frameHead+n]
	sum := crc32.Update(crc32.Checksum(b[:3], castagnoli), castagnoli, body)
	if got := binary.BigEndian.Uint32(b[3:]); got != sum {
		return 0, nil, b, fmt.Errorf("frame checksum is %08x, want %08x", got, sum)
	}
	if b[0] != frameEntry && b[0] != frameCheckpoint {
		return 0, nil, b, fmt.Errorf("frame kind is %q, want E or C", b[0])
	}
	return b[0], body, b[frameHead+n:], nil
}

// walImage is a wal taken apart.
type walImage struct {
	entries [][]byte    // committed entries
	leaves  []tlog.Hash // their leaf hashes
	commits []Head      // every checkpoint frame; the first is the start
	good    []byte      // the bytes up to and with the last commit
	rest    []byte      // the bytes after it, without the zeros
	why     error       // why rest isn't a commit; nil when it is empty
	bad     int64       // the entry where that was found
}

func (w *walImage) start() int64 { return w.commits[0].Size }
func (w *walImage) head() Head   { return w.commits[len(w.commits)-1] }
func (w *walImage) full() bool   { return isFull(len(w.entries), int64(len(w.good))) }

// scanWal takes b apart. Bytes at the end that aren't a whole commit are
// reported in rest: only they can come from a torn write. Everything else
// that is wrong is an error. Roots are not compared here, see checkCommits.
func scanWal(b []byte, open opener) (*walImage, error) {
	if !bytes.HasPrefix(b, []byte(walMagic)) {
		return nil, fmt.Errorf("does not begin with %q", walMagic)
	}
	b = withoutZeros(b)
	w := &walImage{good: b[:len(walMagic)], rest: b[len(walMagic):]}
	var es [][]byte // entries since the last checkpoint
	for at := w.rest; len(at) > 0; {
		kind, body, next, err := nextFrame(at)
		switch {
		case err != nil:
			w.why = fmt.Errorf("offset %d: %w", len(b)-len(at), err)
			return w, w.started(len(es))
		case kind == frameEntry:
			es = append(es, body)
		default:
			if err := w.commit(es, body, open); err != nil {
				return nil, fmt.Errorf("checkpoint at offset %d: %w", len(b)-len(at), err)
			}
			es, w.good, w.rest = nil, b[:len(b)-len(next)], next
		}
		at = next
	}
	if len(w.rest) > 0 {
		w.why = errors.New("no checkpoint follows")
	}
	return w, w.started(len(es))
}

// withoutZeros cuts off the zeros behind the last commit, which itself ends in a
// line. Other zeros than those that a commit leaves stay, to be found wrong, but
// for those behind a commit that a crash has torn.
func withoutZeros(b []byte) []byte {
	t := bytes.TrimRight(b, "\x00")
	if n := len(b) - len(t); n >= walStep || len(b)%walStep != 0 {
		return b
	}
	return t
}

// started refuses a wal without its first checkpoint: it was written in one
// piece with a rename, so no crash can tear it. n entries were read after the
// last one.
func (w *walImage) started(n int) error {
	if len(w.commits) == 0 {
		return errors.Join(errors.New("first frame is not a whole checkpoint"), w.why)
	}
	w.bad = w.head().Size + int64(n)
	return nil
}

func (w *walImage) commit(es [][]byte, body []byte, open opener) error {
	h, err := open(body)
	if err != nil {
		return err
	}
	if len(w.commits) == 0 {
		if len(es) > 0 || h.Size%width != 0 {
			return fmt.Errorf("is of size %d after %d entries, want a multiple of %d and no entry", h.Size, len(es), width)
		}
		w.commits = append(w.commits, h)
		return nil
	}
	if want := w.head().Commit + 1; h.Commit != want {
		return fmt.Errorf("is commit %d, want %d: a commit was taken out or put in", h.Commit, want)
	}
	if want := w.head().Size + int64(len(es)); h.Size != want || len(es) == 0 {
		return fmt.Errorf("is of size %d after %d new entries, want %d", h.Size, len(es), want)
	}
	if h.Size-w.start() > walEntries {
		return fmt.Errorf("is of size %d, more than %d beyond the bundle that begins at %d", h.Size, walEntries, w.start())
	}
	for _, e := range es {
		w.leaves = append(w.leaves, tlog.RecordHash(e))
	}
	w.entries = append(w.entries, es...)
	w.commits = append(w.commits, h)
	return nil
}

// checkCommits replays the entries on p, the tree of the full bundles, and
// compares every checkpoint's root. Each leaf is handed to seen, if any.
func (w *walImage) checkCommits(p *peaks, seen func(size int64, p *peaks) error) error {
	for _, c := range w.commits {
		from := p.n
		for p.n < c.Size {
			p.add(w.leaves[p.n-w.start()])
			if seen == nil {
				continue
			}
			if err := seen(p.n, p); err != nil {
				return err
			}
		}
		if got := p.root(); got != c.Root {
			return &Fault{walFile, from, fmt.Sprintf("the first %d entries (of which the commit added %d) have root %v, the signed checkpoint says %v", c.Size, c.Size-from, got, c.Root), restore}
		}
	}
	return nil
}
