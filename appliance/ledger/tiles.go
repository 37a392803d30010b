package ledger

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	width    = 256 // hashes in a full tile, entries in a full bundle
	tileSize = width * tlog.HashSize
	maxEntry = 1<<16 - 1 // an entry's length is two bytes
	maxTile  = width * (maxEntry + 2)

	checkpointFile = "checkpoint"
	walFile        = "wal"
	tileDir        = "tile"
)

// tilePath names a full tile, or with level -1 a full bundle, relative to the
// log's directory. Numbers are written in groups of three digits, all but the
// last with an x before it: 1234067 is x001/x234/067 (C2SP tlog-tiles).
func tilePath(level int, n int64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	if level < 0 {
		return tileDir + "/entries/" + s
	}
	return fmt.Sprintf("%s/%d/%s", tileDir, level, s)
}

// appendBundle encodes entries as an entry bundle: each a big-endian uint16
// length and the bytes.
func appendBundle(b []byte, entries ...[]byte) []byte {
	for _, e := range entries {
		b = binary.BigEndian.AppendUint16(b, uint16(len(e)))
		b = append(b, e...)
	}
	return b
}

// splitBundle is the inverse of appendBundle. The entries share b's memory.
func splitBundle(b []byte) ([][]byte, error) {
	es := make([][]byte, 0, width)
	for off := 0; off < len(b); {
		if len(b)-off < 2 {
			return es, fmt.Errorf("entry %d of the bundle ends inside its length", len(es))
		}
		n := int(binary.BigEndian.Uint16(b[off:]))
		off += 2
		if len(b)-off < n {
			return es, fmt.Errorf("entry %d of the bundle says %d bytes, %d are left", len(es), n, len(b)-off)
		}
		es = append(es, b[off:off+n:off+n])
		off += n
	}
	return es, nil
}

// readBundle returns the 256 entries of full bundle n.
func readBundle(dir string, n int64) ([][]byte, error) {
	p := tilePath(-1, n)
	b, err := readPlain(dir, p, maxTile)
	if err != nil {
		return nil, err
	}
	es, err := splitBundle(b)
	if err == nil && len(es) != width {
		err = fmt.Errorf("bundle holds %d entries, want %d", len(es), width)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return es, nil
}

// reduce is the root of a perfect tree over hs, whose length is a power of 2.
func reduce(hs []tlog.Hash) tlog.Hash {
	hs = append([]tlog.Hash(nil), hs...)
	for n := len(hs); n > 1; n /= 2 {
		for i := range n / 2 {
			hs[i] = tlog.NodeHash(hs[2*i], hs[2*i+1])
		}
	}
	return hs[0]
}

func joinHashes(hs []tlog.Hash) []byte {
	b := make([]byte, 0, len(hs)*tlog.HashSize)
	for i := range hs {
		b = append(b, hs[i][:]...)
	}
	return b
}

// hashes reads the tree's inner hashes: full tiles from files, the right edge
// from the leaves that are still in the wal. It trusts the files; compare
// what comes out with a signed root.
type hashes struct {
	dir    string
	start  int64 // leaves in full tiles: a multiple of width
	leaves []tlog.Hash
}

func (t *hashes) size() int64 { return t.start + int64(len(t.leaves)) }

// row returns n hashes of tile level L from index lo on. They must lie in one
// tile and must be complete.
func (t *hashes) row(level int, lo int64, n int) ([]tlog.Hash, error) {
	tile := lo / width
	span := int64(1) << (8 * level) // leaves under one hash of this level
	switch {
	case (tile+1)*width*span <= t.start:
		return t.readTile(level, tile, int(lo%width), n)
	case level == 0:
		return t.leaves[lo-t.start : lo-t.start+int64(n)], nil
	}
	// A tile that isn't full yet has no file: each of its hashes is the root
	// of a full row one level down.
	hs := make([]tlog.Hash, n)
	for i := range hs {
		low, err := t.row(level-1, (lo+int64(i))*width, width)
		if err != nil {
			return nil, err
		}
		hs[i] = reduce(low)
	}
	return hs, nil
}

func (t *hashes) readTile(level int, tile int64, lo, n int) ([]tlog.Hash, error) {
	p := tilePath(level, tile)
	b, err := readPlain(t.dir, p, maxTile)
	if err != nil {
		return nil, err
	}
	if len(b) != tileSize {
		return nil, fmt.Errorf("%s has %d bytes, want %d", p, len(b), tileSize)
	}
	hs := make([]tlog.Hash, n)
	for i := range hs {
		copy(hs[i][:], b[(lo+i)*tlog.HashSize:])
	}
	return hs, nil
}

// hash returns hash n of binary level, in tlog's numbering.
func (t *hashes) hash(level int, n int64) (tlog.Hash, error) {
	r := level % 8
	hs, err := t.row(level/8, n<<r, 1<<r)
	if err != nil {
		return tlog.Hash{}, err
	}
	return reduce(hs), nil
}

// ReadHashes implements tlog.HashReader.
func (t *hashes) ReadHashes(idx []int64) ([]tlog.Hash, error) {
	hs := make([]tlog.Hash, len(idx))
	for i, x := range idx {
		var err error
		if hs[i], err = t.hash(tlog.SplitStoredHashIndex(x)); err != nil {
			return nil, err
		}
	}
	return hs, nil
}

// root is the tree's root at size n, at most t.size().
func (t *hashes) root(n int64) (tlog.Hash, error) {
	p, err := t.peaks(n)
	return p.root(), err
}

// peaks collects the perfect subtrees of the tree of size n.
func (t *hashes) peaks(n int64) (peaks, error) {
	p := peaks{n: n}
	for at := int64(0); at < n; {
		level := bits.Len64(uint64(n-at)) - 1
		h, err := t.hash(level, at>>level)
		if err != nil {
			return peaks{}, err
		}
		p.roots = append(p.roots, h)
		at += 1 << level
	}
	return p, nil
}
