// Package lanes computes two sha256 chains at the same time.
//
// A chain is a row of instructions that wait for each other: on a processor with
// SHA extensions a block takes 32 of them, four cycles each, while the unit that
// runs them takes a new one every two cycles. A second chain beside the first
// uses the cycles in between. That helps only who has two independent stretches
// of data, like the chunks of a blob, each with a state of its own to start from.
package lanes

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Blocks hashes p from the chaining value a and q from b (FIPS 180-4, 6.2.2, big
// endian), and puts the chaining values that follow in their place. p and q have
// the same length, a multiple of sha256.BlockSize; it panics where they have not. It
// must not be called unless Available.
func Blocks(a, b *[sha256.Size]byte, p, q []byte) {
	if !Available || len(p) != len(q) || len(p)%sha256.BlockSize != 0 {
		panic(fmt.Sprintf("lanes: available is %t, got %d and %d bytes, want the same multiple of %d", Available, len(p), len(q), sha256.BlockSize))
	}
	if len(p) == 0 {
		return
	}
	x, y := words(a), words(b)
	blocks(&x, &y, &p[0], &q[0], len(p)/sha256.BlockSize)
	bytes(a, x)
	bytes(b, y)
}

func words(s *[sha256.Size]byte) (w [8]uint32) {
	for i := range w {
		w[i] = binary.BigEndian.Uint32(s[4*i:])
	}
	return w
}

func bytes(s *[sha256.Size]byte, w [8]uint32) {
	for i, x := range w {
		binary.BigEndian.PutUint32(s[4*i:], x)
	}
}
