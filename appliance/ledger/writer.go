package ledger

import (
	"crypto/sha256"
	"hash"
	"path"
	"slices"
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
	entries [][]byte // in the wal
	most    int      // of them, a multiple of width
	head    Head     // last durable commit
	shown   int64    // size that the checkpoint file states
	made    map[string]bool
	wal     []byte // its committed bytes, as Open found them
	used    int64  // bytes of the wal up to the last commit
	laid    int64  // its length: zeros follow

	frames []byte // of the entries; kept for the next wal, like what follows
	bundle []byte
}

// commit makes es durable with one flush. It takes as many as the wal has room
// for and returns how many those were.
func (w *writer) commit(es [][]byte) (int, error) {
	n := w.fits(es)
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
	if err := w.put(b[at:]); err != nil {
		return 0, err
	}
	w.peaks, w.head, w.frames = p, h, b
	w.entries, w.tiles.leaves = entries, leaves
	return n, nil
}

// fits says how many of es the next commit takes: no more than fill the wal, or
// a bundle where the wal has its bytes, so that a commit ends where it rotates.
func (w *writer) fits(es [][]byte) int {
	n, room := min(len(es), w.most-len(w.entries)), walBytes-w.used
	if room <= 0 {
		return min(n, width-len(w.entries)%width)
	}
	for i, e := range es[:n] {
		if room -= int64(len(e)); room <= 0 {
			return i + 1
		}
	}
	return n
}

// due says whether it is time to rotate.
func (w *writer) due() bool {
	return len(w.entries) == w.most || isFull(len(w.entries), w.used)
}

// put writes a commit behind the others, and flushes it. Where the file has to
// grow, it grows by more: a flush of bytes that are in the file already needs no
// commit of the file system's journal, and takes half as long.
func (w *writer) put(b []byte) error {
	end := w.used + int64(len(b))
	ops := []op{{verb: grow, path: walFile, at: w.used, data: b}}
	laid := max(w.laid, padded(end))
	if laid > w.laid {
		ops = append(ops, op{verb: grow, path: walFile, at: end, data: zeros[:laid-end]})
	}
	if err := w.all(append(ops, op{verb: flush, path: walFile})...); err != nil {
		return err
	}
	w.used, w.laid = end, laid
	return nil
}

// tidy cuts off the zeros behind the last commit.
func (w *writer) tidy() error {
	if w.laid == w.used {
		return nil
	}
	err := w.all(op{verb: trim, path: walFile, at: w.used})
	w.laid = w.used
	return err
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

// empty makes frames ready for the next wal, in one piece of memory if the last
// one had several.
func (w *writer) empty() {
	w.frames = w.frames[:0]
	if n := min(int(w.used), walBytes) + headRoom; cap(w.frames) < n {
		w.frames = make([]byte, 0, n)
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

// rotate moves the wal's entries, a multiple of width, to bundles and tiles. The
// wal stays until all of them are durable. No rename for a tile: until the wal is
// replaced nobody counts on the file, and Open writes it again if a crash comes
// between. The checkpoint file is brought up to date in the same step; it is below
// the start of the wal for the moment between two renames only.
func (w *writer) rotate() error {
	w.bundle = slices.Grow(w.bundle[:0], int(w.used))
	var files []op
	for at := 0; at < len(w.entries); at += width {
		from := len(w.bundle)
		w.bundle = appendBundle(w.bundle, w.entries[at:at+width]...)
		n := w.tiles.start/width + int64(at/width)
		ts, err := w.tilesOf(n)
		if err != nil {
			return err
		}
		files = append(append(files, op{verb: write, path: tilePath(-1, n), data: w.bundle[from:]}), ts...)
	}
	dirs, err := w.dirsOf(files)
	if err != nil {
		return err
	}
	// What an older version signed could be a checkpoint file.
	if w.head, err = w.head.signed(w.signer, walLine); err != nil {
		return err
	}
	wal := newWal(w.head)
	heads, err := w.heads(wal)
	if err != nil {
		return err
	}
	if err := w.disk.do(append(files, heads...)...); err != nil {
		return err
	}
	if err := w.disk.do(dirs...); err != nil {
		return err
	}
	w.tiles.start, w.tiles.leaves, w.entries = w.tiles.start+int64(len(w.entries)), w.tiles.leaves[:0], w.entries[:0]
	w.empty()
	w.used, w.laid = int64(len(wal)), int64(len(wal))
	return w.swap()
}

// tilesOf are the tiles that bundle n completes.
func (w *writer) tilesOf(n int64) ([]op, error) {
	var files []op
	for l := 0; ; l++ {
		hs, err := w.tiles.row(l, n*width, width)
		if err != nil {
			return nil, err
		}
		files = append(files, op{verb: write, path: tilePath(l, n), data: joinHashes(hs)})
		if (n+1)%width != 0 {
			return files, nil
		}
		n /= width // that tile completes one above it
	}
}

// dirsOf makes the directories of files, and gives what flushes their names.
func (w *writer) dirsOf(files []op) (flushes []op, err error) {
	for _, f := range files {
		d := op{verb: syncDir, path: path.Dir(f.path)}
		if slices.ContainsFunc(flushes, func(o op) bool { return o.path == d.path }) {
			continue
		}
		if err := w.mkdirs(d.path); err != nil {
			return nil, err
		}
		flushes = append(flushes, d)
	}
	return flushes, nil
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
	w.used, w.laid = int64(len(b)), int64(len(b))
	return w.publish()
}

// heads writes the next checkpoint file and the next wal beside the present
// ones; swap puts them in their place.
func (w *writer) heads(wal []byte) ([]op, error) {
	cp, err := w.head.publish(w.signer)
	return []op{
		{verb: write, path: checkpointFile + ".new", data: cp},
		{verb: write, path: walFile + ".new", data: wal},
	}, err
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
	cp, err := w.head.publish(w.signer)
	if err != nil {
		return err
	}
	err = w.all(
		op{verb: write, path: checkpointFile + ".new", data: cp},
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
