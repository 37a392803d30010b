package content

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content/lanes"
)

// State is sha256's chaining value after a whole number of 64-byte blocks
// (FIPS 180-4, 6.2.2: H(i), big-endian). The states at the borders of a blob's
// chunks make each chunk provable by itself: hash it from the state before it,
// and compare with the state after it, or, at the end, with the blob's digest.
// When every chunk has held, so has the sha256 of the whole blob, at the price
// of one sum per byte; and chunks can be proved in any order.
//
// Two different chunks of the same length that lead from one state to the same
// other one are a collision of sha256's compression function, which is what
// sha256 itself rests on (Merkle-Damgård).
type State [sha256.Size]byte

// StartState is the state before the first byte (FIPS 180-4, 5.3.3).
var StartState = mustState(sha256.New())

const block = sha256.BlockSize

// The standard library's encoding of a sha256 under way, which package hash
// promises to keep readable: 4 bytes of magic, the chaining value, the begun
// block, the length.
const (
	stateAt  = 4
	bufferAt = stateAt + sha256.Size
	lengthAt = bufferAt + block
	stateLen = lengthAt + 8
)

// String returns 64 hex digits.
func (s State) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes hex.
func (s State) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads 64 hex digits.
func (s *State) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return fmt.Errorf("sha256 state has %d characters, want %d", len(b), 2*len(s))
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// resume returns the sum that goes on from s after n bytes.
func (s State) resume(n int64) (hash.Hash, error) {
	b := marshal(sha256.New())
	copy(b[stateAt:], s[:])
	binary.BigEndian.PutUint64(b[lengthAt:], uint64(n))
	return restore(b)
}

func marshal(h hash.Hash) []byte {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil || len(b) != stateLen {
		panic(fmt.Sprintf("content: crypto/sha256 marshals to %d bytes, %v", len(b), err))
	}
	return b
}

func restore(b []byte) (hash.Hash, error) {
	h := sha256.New()
	return h, h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b)
}

// stateOf returns the state of h, if it stands at the border of a block.
func stateOf(h hash.Hash) (s State, ok bool) {
	b := marshal(h)
	copy(s[:], b[stateAt:])
	return s, binary.BigEndian.Uint64(b[lengthAt:])%block == 0
}

func mustState(h hash.Hash) State {
	s, _ := stateOf(h)
	return s
}

// Piece is a stretch of a blob that was hashed from a state. Only State.Piece
// makes one, so that a store may take its sum for what it is.
type Piece struct {
	off  int64
	data []byte
	from State
	sum  hash.Hash
}

// Piece hashes data, which begins at byte off of a blob, from s. The piece
// refers to data; data must not change while the piece is used.
func (s State) Piece(off int64, data []byte) (Piece, error) {
	return Stretch{From: s, Off: off, Data: data}.Piece()
}

// Stretch is what a Piece is to be made of: data that begins at byte Off of a
// blob, which is in the state From there.
type Stretch struct {
	From State
	Off  int64
	Data []byte
}

// Piece is State.Piece of x.
func (x Stretch) Piece() (Piece, error) { return x.piece(x.From, 0) }

// Pieces is Piece of two stretches, which may be of different blobs. Where
// the processor can it hashes them at the same time, in little more than half of
// the time (see package lanes).
func Pieces(a, b Stretch) (pa, pb Piece, err error) {
	sa, sb, n := a.From, b.From, 0
	if lanes.Available {
		n = min(len(a.Data), len(b.Data)) / block * block
		lanes.Blocks((*[sha256.Size]byte)(&sa), (*[sha256.Size]byte)(&sb), a.Data[:n], b.Data[:n])
	}
	if pa, err = a.piece(sa, n); err == nil {
		pb, err = b.piece(sb, n)
	}
	return pa, pb, err
}

// piece makes the piece when n bytes, whole blocks, have led to the state s.
func (x Stretch) piece(s State, n int) (Piece, error) {
	if x.Off < 0 || x.Off%block != 0 {
		return Piece{}, fmt.Errorf("piece at byte %d: want a multiple of %d", x.Off, block)
	}
	h, err := s.resume(x.Off + int64(n))
	if err != nil {
		return Piece{}, err
	}
	h.Write(x.Data[n:])
	return Piece{off: x.Off, data: x.Data, from: x.From, sum: h}, nil
}

// State returns the state after the piece. It is an error when the piece ends
// within a block.
func (p Piece) State() (State, error) {
	s, ok := stateOf(p.sum)
	if !ok {
		return State{}, errors.New("a piece that ends within a block has no state")
	}
	return s, nil
}

// Digest returns the digest of the blob that ends with the piece.
func (p Piece) Digest() v1.Hash { return digestOf(p.sum) }

// Data returns the bytes.
func (p Piece) Data() []byte { return p.data }

func digestOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}
