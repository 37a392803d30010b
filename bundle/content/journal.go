package content

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// The journal of a partial blob says how many of its bytes are safe. It is a
// file of two slots, one page apart, written in turn; so a torn write leaves
// the other slot, which is older and as true. A slot is 256 bytes:
//
//	  0  "clawbox partial\n"
//	 16  number of the entry, from 1       big-endian, as all that follow
//	 24  bytes of the blob that are safe
//	 32  bytes of the blob, -1 when that is not known
//	 40  digest of the blob, zero when that is not known
//	 72  sha256 of the safe bytes, as crypto/sha256 marshals it
//	180  zero
//	224  sha256 of the 224 bytes before
const (
	slotMagic = "clawbox partial\n"
	slotLen   = 256
	slotStep  = 4096
	journal   = ".journal" // suffix of the file
)

// entry is what a slot says.
type entry struct {
	seq    uint64
	n      int64
	size   int64
	digest [sha256.Size]byte
	sum    [stateLen]byte
}

func (e entry) encode() []byte {
	b := make([]byte, 0, slotLen)
	b = append(b, slotMagic...)
	b = binary.BigEndian.AppendUint64(b, e.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(e.n))
	b = binary.BigEndian.AppendUint64(b, uint64(e.size))
	b = append(b, e.digest[:]...)
	b = append(b, e.sum[:]...)
	b = append(b, make([]byte, slotLen-sha256.Size-len(b))...)
	s := sha256.Sum256(b)
	return append(b, s[:]...)
}

// decodeEntry returns false for everything that encode doesn't make.
func decodeEntry(b []byte) (e entry, ok bool) {
	if len(b) != slotLen {
		return e, false
	}
	e.seq = binary.BigEndian.Uint64(b[16:])
	e.n = int64(binary.BigEndian.Uint64(b[24:]))
	e.size = int64(binary.BigEndian.Uint64(b[32:]))
	copy(e.digest[:], b[40:])
	copy(e.sum[:], b[72:])
	return e, bytes.Equal(b, e.encode()) && e.n >= 0 && int64(binary.BigEndian.Uint64(e.sum[lengthAt:])) == e.n
}

// readJournal returns the newest entry for the blob, and the zero entry when
// there is none.
func readJournal(j io.ReaderAt, digest [sha256.Size]byte, size int64) (best entry, err error) {
	for _, off := range []int64{0, slotStep} {
		b := make([]byte, slotLen)
		if _, err := j.ReadAt(b, off); err != nil && err != io.EOF {
			return entry{}, err
		}
		if e, ok := decodeEntry(b); ok && e.seq > best.seq && e.digest == digest && e.size == size {
			best = e
		}
	}
	return best, nil
}

// openJournal opens the journal beside path, if there is one.
func (s *Store) openJournal(path string) (file, error) {
	j, err := s.disk.open(path+journal, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return j, err
}

// createJournal makes an empty journal whose blocks are there, so that a full
// disk can't keep later entries from being written.
func (s *Store) createJournal(path string) (file, error) {
	j, err := s.disk.open(path+journal, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := j.WriteAt(make([]byte, slotStep+slotLen), 0); err != nil {
		return nil, errors.Join(err, j.Close(), s.disk.remove(path+journal))
	}
	return j, nil
}

func rawDigest(h v1.Hash) (b [sha256.Size]byte) {
	var s State
	if s.UnmarshalText([]byte(h.Hex)) == nil {
		b = s
	}
	return b
}

// snapshot is the entry for the first n bytes, whose sum is h.
func snapshot(seq uint64, n, size int64, want v1.Hash, h hash.Hash) entry {
	e := entry{seq: seq, n: n, size: size, digest: rawDigest(want)}
	copy(e.sum[:], marshal(h))
	return e
}
