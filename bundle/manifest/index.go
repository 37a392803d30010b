package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Index lists the blobs in the order in which they lie in the parts.
type Index struct {
	Format string `json:"format"`
	Blobs  []Blob `json:"blobs"`
}

// Blob is a range of the payload. It begins in Part (from 1) at Offset bytes
// and may run on into the parts that follow.
type Blob struct {
	Digest v1.Hash `json:"digest"`
	Size   int64   `json:"size"`
	Part   int     `json:"part"`
	Offset int64   `json:"offset"`
	// Chunks are the sha256 of each ChunkSize bytes, the last one shorter. A
	// blob that fits into one chunk has none: its digest is that sum.
	Chunks []Sum `json:"chunks,omitempty"`
}

// Chunk returns the sum and the length in bytes of chunk i.
func (b Blob) Chunk(i int) (Sum, int64) {
	n := min(b.Size-int64(i)*ChunkSize, ChunkSize)
	if len(b.Chunks) > 0 {
		return b.Chunks[i], n
	}
	s, _ := SumOf(b.Digest) // checked by OpenIndex
	return s, n
}

// Len returns the number of chunks; an empty blob has one, of no bytes.
func (b Blob) Len() int { return max(1, len(b.Chunks)) }

// Place is where a blob begins.
type Place struct {
	Part   int // from 1
	Offset int64
}

// Places lays blobs of the given sizes one after the other into parts. A blob
// begins in the next part when the current one is full.
func Places(sizes, parts []int64) ([]Place, error) {
	at := make([]Place, len(sizes))
	p, off := 0, int64(0)
	for i, n := range sizes {
		if p < len(parts)-1 && off == parts[p] {
			p, off = p+1, 0
		}
		at[i] = Place{p + 1, off}
		for off+n > parts[p] {
			n -= parts[p] - off
			p, off = p+1, 0
			if p == len(parts) {
				return nil, fmt.Errorf("index: blob %d does not fit: the parts are %d bytes short", i, n)
			}
		}
		off += n
	}
	if p != len(parts)-1 || off != parts[p] {
		return nil, fmt.Errorf("index: the blobs end in %s at %d, want the end of %s", PartName(p+1), off, PartName(len(parts)))
	}
	return at, nil
}

// SplitParts returns the sizes of the parts that hold total bytes.
func SplitParts(total, size int64) (parts []int64) {
	for ; total > size; total -= size {
		parts = append(parts, size)
	}
	return append(parts, total)
}

// EncodeIndex returns the canonical bytes of an index: compact JSON and a
// newline.
func EncodeIndex(x Index) ([]byte, error) {
	b, err := json.Marshal(x)
	if err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	if b = append(b, '\n'); len(b) > MaxIndex {
		return nil, fmt.Errorf("index of %d bytes, want at most %d: make several bundles", len(b), MaxIndex)
	}
	return b, nil
}

// OpenIndex checks b against the release and returns the index: right bytes,
// canonical form, and blobs that cover the parts exactly, without overlap.
func (r Release) OpenIndex(b []byte) (Index, error) {
	if int64(len(b)) < r.Index.Size {
		return Index{}, fmt.Errorf("%w: index.json: got %d bytes, want %d", ErrIncomplete, len(b), r.Index.Size)
	}
	if int64(len(b)) > r.Index.Size {
		return Index{}, &TamperedError{What: "index.json", Detail: fmt.Sprintf("got %d bytes, want %d", len(b), r.Index.Size)}
	}
	if got := Sum(sha256.Sum256(b)); got != r.Index.SHA256 {
		return Index{}, &TamperedError{What: "index.json", Detail: fmt.Sprintf("got sha256 %s, want %s", got, r.Index.SHA256)}
	}
	var x Index
	if err := decode(b, &x); err != nil {
		return Index{}, fmt.Errorf("index: %w", err)
	}
	canon, err := EncodeIndex(x)
	if err != nil {
		return Index{}, err
	}
	if !bytes.Equal(b, canon) {
		return Index{}, same("index.json", b, canon)
	}
	return x, x.check(r)
}

func (x Index) check(r Release) error {
	if x.Format != IndexFormat {
		return fmt.Errorf("index: format %.80q, want %s: made by another version of clawbox", x.Format, IndexFormat)
	}
	sizes := make([]int64, len(x.Blobs))
	bySum := map[v1.Hash]int64{}
	var total int64
	for i, b := range x.Blobs {
		if err := b.check(); err != nil {
			return fmt.Errorf("index: blob %d: %w", i, err)
		}
		if _, ok := bySum[b.Digest]; ok {
			return fmt.Errorf("index: blob %d: %s comes twice", i, b.Digest)
		}
		bySum[b.Digest], sizes[i] = b.Size, b.Size
		if total += b.Size; total > maxTotal {
			return fmt.Errorf("index: more than %d bytes", int64(maxTotal))
		}
	}
	for _, it := range r.Items {
		if n, ok := bySum[it.Descriptor.Digest]; !ok || n != it.Descriptor.Size {
			return fmt.Errorf("index: item %s: manifest %s of %d bytes is not among the blobs", it.Name, it.Descriptor.Digest, it.Descriptor.Size)
		}
	}
	return x.checkPlaces(sizes, r.Parts)
}

func (x Index) checkPlaces(sizes []int64, parts []Part) error {
	lens := make([]int64, len(parts))
	for i, p := range parts {
		lens[i] = p.Size
	}
	at, err := Places(sizes, lens)
	if err != nil {
		return err
	}
	for i, b := range x.Blobs {
		if (Place{b.Part, b.Offset}) != at[i] {
			return fmt.Errorf("index: blob %d: part %d offset %d, want part %d offset %d",
				i, b.Part, b.Offset, at[i].Part, at[i].Offset)
		}
	}
	return nil
}

func (b Blob) check() error {
	if _, err := SumOf(b.Digest); err != nil {
		return err
	}
	if b.Size < 0 || b.Size > maxTotal {
		return fmt.Errorf("%s: %d bytes, want 0 to %d", b.Digest, b.Size, int64(maxTotal))
	}
	want := 0
	if b.Size > ChunkSize {
		want = int((b.Size + ChunkSize - 1) / ChunkSize)
	}
	if len(b.Chunks) != want {
		return fmt.Errorf("%s: %d chunk sums for %d bytes, want %d", b.Digest, len(b.Chunks), b.Size, want)
	}
	return nil
}
