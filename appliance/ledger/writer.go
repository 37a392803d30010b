package ledger

import (
	"crypto/sha256"
	"hash"
	"path"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// writer is the state of the tree at the end of the log, and the only code
// that changes the directory. One goroutine uses it. After an error it must
// not be used again: what is on the disk is then unknown until Open looks.
type writer struct {
	disk    disk
	signer  note.Signer
	tiles   hashes
	peaks   peaks
	entries [][]byte // in the wal, at most width
	head    Head     // last durable commit
	shown   int64    // size that the checkpoint file states
	made    map[string]bool
	wal     []byte // its committed bytes, as Open found them

	frames []byte // of the entries; kept for the next wal, like what follows
	bundle []byte
}

// commit makes es durable with one flush. It takes as many as the bundle has
// room for and returns how many those were.
func (w *writer) commit(es [][]byte) (int, error) {
	n := min(len(es), width-len(w.entries))
	w.reserve(es[:n])
	at, b := len(w.frames), w.frames
	entries, leaves := w.entries, w.tiles.leaves
	p := w.peaks.clone()
	for _, e := range es[:n] {
		b = appendFrame(b, frameEntry, e)
		entries = append(entries, b[len(b)-len(e):len(b):len(b)]) // es is the caller's
		leaves = append(leaves, leafHash(e))
		p.add(leaves[len(leaves)-1])
	}
	h, err := signHead(w.signer, &p, w.head.Commit+1)
	if err != nil {
		return 0, err
	}
	b = appendFrame(b, frameCheckpoint, h.Checkpoint)
	if err := w.all(op{verb: grow, path: walFile, data: b[at:]}, op{verb: flush, path: walFile}); err != nil {
		return 0, err
	}
	w.peaks, w.head, w.frames = p, h, b
	w.entries, w.tiles.leaves = entries, leaves
	return n, nil
}

// reserve makes room for frames, so that those that are there stay where they
// are: w.entries are parts of them.
func (w *writer) reserve(es [][]byte) {
	n := headRoom
	for _, e := range es {
		n += len(e) + frameHead
	}
	if cap(w.frames)-len(w.frames) < n {
		w.frames = make([]byte, 0, max(2*n, width*usual))
	}
}

// headRoom is more than the frame of a checkpoint takes.
const headRoom = 1 << 10

// leafHash is tlog.RecordHash (RFC 6962, section 2.1) without allocation.
func leafHash(e []byte) (h tlog.Hash) {
	d := leafHashes.Get().(hash.Hash)
	d.Reset()
	d.Write(leafPrefix)
	d.Write(e)
	d.Sum(h[:0])
	leafHashes.Put(d)
	return h
}

var (
	leafPrefix = []byte{0}
	leafHashes = sync.Pool{New: func() any { return sha256.New() }}
)

// rotate moves a full wal to a bundle and tiles. The wal stays until all of
// them are durable. No rename for a tile: until the wal is replaced nobody
// counts on the file, and Open writes it again if a crash comes between. The
// checkpoint file is brought up to date in the same step; it is below the start
// of the wal for the moment between two renames only.
func (w *writer) rotate() error {
	n := w.tiles.start / width
	w.bundle = appendBundle(w.bundle[:0], w.entries...)
	files := []op{{verb: write, path: tilePath(-1, n), data: w.bundle}}
	for l := 0; ; l++ {
		hs, err := w.tiles.row(l, n*width, width)
		if err != nil {
			return err
		}
		files = append(files, op{verb: write, path: tilePath(l, n), data: joinHashes(hs)})
		if (n+1)%width != 0 {
			break
		}
		n /= width // that tile completes one above it
	}
	dirs := make([]op, len(files))
	for i, f := range files {
		dirs[i] = op{verb: syncDir, path: path.Dir(f.path)}
		if err := w.mkdirs(dirs[i].path); err != nil {
			return err
		}
	}
	if err := w.disk.do(append(files, w.heads(newWal(w.head))...)...); err != nil {
		return err
	}
	if err := w.disk.do(dirs...); err != nil {
		return err
	}
	w.tiles.start, w.tiles.leaves, w.entries = w.tiles.start+width, w.tiles.leaves[:0], w.entries[:0]
	w.frames = w.frames[:0]
	return w.swap()
}

// mkdirs makes dir and its parents, once in a writer's life: a directory that
// is there already may be the work of a rotation cut off before its flush.
func (w *writer) mkdirs(dir string) error {
	if dir == "." || w.made[dir] {
		return nil
	}
	up := path.Dir(dir)
	if err := w.mkdirs(up); err != nil {
		return err
	}
	w.made[dir] = true
	return w.all(op{verb: mkdir, path: dir}, op{verb: syncDir, path: up})
}

// restart replaces the wal by the image b, and then the checkpoint file by the
// head. The wal is durable first: it may hold a commit that the one before it
// lacks, and a checkpoint file ahead of the wal is refused.
func (w *writer) restart(b []byte) error {
	err := w.all(
		op{verb: write, path: walFile + ".new", data: b},
		op{verb: rename, path: walFile + ".new", to: walFile},
		op{verb: syncDir, path: "."},
	)
	if err != nil {
		return err
	}
	return w.publish()
}

// heads writes the next checkpoint file and the next wal beside the present
// ones; swap puts them in their place.
func (w *writer) heads(wal []byte) []op {
	return []op{
		{verb: write, path: checkpointFile + ".new", data: w.head.Checkpoint},
		{verb: write, path: walFile + ".new", data: wal},
	}
}

func (w *writer) swap() error {
	err := w.all(
		op{verb: rename, path: walFile + ".new", to: walFile},
		op{verb: rename, path: checkpointFile + ".new", to: checkpointFile},
		op{verb: syncDir, path: "."},
	)
	w.shown = w.head.Size
	return err
}

// publish brings the checkpoint file up to the head.
func (w *writer) publish() error {
	if w.shown == w.head.Size {
		return nil
	}
	err := w.all(
		op{verb: write, path: checkpointFile + ".new", data: w.head.Checkpoint},
		op{verb: rename, path: checkpointFile + ".new", to: checkpointFile},
		op{verb: syncDir, path: "."},
	)
	w.shown = w.head.Size
	return err
}

// all performs ops one after the other.
func (w *writer) all(ops ...op) error {
	for _, o := range ops {
		if err := w.disk.do(o); err != nil {
			return err
		}
	}
	return nil
}
