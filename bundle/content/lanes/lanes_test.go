package lanes

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// next is what Blocks is held against: the standard library, from a state on.
func next(t testing.TB, s [sha256.Size]byte, p []byte) (out [sha256.Size]byte) {
	t.Helper()
	h := sha256.New()
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	copy(b[4:], s[:])
	binary.BigEndian.PutUint64(b[len(b)-8:], 0)
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	h.Write(p)
	if b, err = h.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		t.Fatal(err)
	}
	copy(out[:], b[4:])
	return out
}

// available skips where crypto/sha256 is used alone.
func available(t testing.TB) {
	t.Helper()
	if !Available {
		t.Skip("this processor has no SHA extensions, or the program runs in FIPS 140 mode: crypto/sha256 is used alone")
	}
}

// TestBlocks: random states, stretches of random length that lie anywhere.
func TestBlocks(t *testing.T) {
	available(t)
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	buf := make([]byte, 1<<16)
	for range 2000 {
		for i := range buf[:2048] {
			buf[r.IntN(len(buf))] = byte(r.Uint32()) ^ byte(i)
		}
		var a, b [sha256.Size]byte
		for i := range a {
			a[i], b[i] = byte(r.Uint32()), byte(r.Uint32())
		}
		n := r.IntN(64) * sha256.BlockSize
		p, q := buf[r.IntN(len(buf)-n):][:n], buf[r.IntN(len(buf)-n):][:n]
		check(t, a, b, p, q)
	}
}

func check(t *testing.T, a, b [sha256.Size]byte, p, q []byte) {
	t.Helper()
	wantA, wantB := next(t, a, p), next(t, b, q)
	gotA, gotB := a, b
	if Blocks(&gotA, &gotB, p, q); gotA != wantA || gotB != wantB {
		t.Fatalf("from %x and %x over %d bytes: got %x and %x, want %x and %x", a, b, len(p), gotA, gotB, wantA, wantB)
	}
}

// TestRefuses: what the assembler code must never be given.
func TestRefuses(t *testing.T) {
	for _, n := range [][2]int{{64, 128}, {63, 63}, {65, 65}, {0, 64}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d and %d bytes: got no panic", n[0], n[1])
				}
			}()
			var a, b [sha256.Size]byte
			Blocks(&a, &b, make([]byte, n[0]), make([]byte, n[1]))
		}()
	}
}

func FuzzBlocks(f *testing.F) {
	available(f)
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(make([]byte, 64), make([]byte, 1024), []byte{1})
	f.Fuzz(func(t *testing.T, states, data, other []byte) {
		var a, b [sha256.Size]byte
		copy(a[:], states)
		copy(b[:], states[min(len(states), sha256.Size):])
		// Two stretches of one length, the second from anywhere in memory.
		n := len(data) / 2 / sha256.BlockSize * sha256.BlockSize
		q := append(other[:len(other):len(other)], data[len(data)-n:]...)[len(other):]
		check(t, a, b, data[:n], q)
	})
}

// Benchmark compares the bytes of two lanes with those of crypto/sha256, in the
// same run.
func Benchmark(b *testing.B) {
	p, q := make([]byte, 4<<20), make([]byte, 4<<20)
	b.Run("one", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			sha256.Sum256(p)
		}
	})
	b.Run("two", func(b *testing.B) {
		available(b)
		b.SetBytes(int64(len(p) + len(q)))
		var x, y [sha256.Size]byte
		for b.Loop() {
			Blocks(&x, &y, p, q)
		}
	})
}
