package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/zeebo/xxh3"

	"github.com/clawbox/clawbox/bundle/content"
)

// Index lists the blobs in the order in which they lie in the parts.
type Index struct {
	Format string `json:"format"`
	Items  []Item `json:"items,omitempty"` // of an encrypted release
	Blobs  []Blob `json:"blobs"`
}

// Blob is content and where its bytes come from: from the media, beginning in
// Part (from 1) at Offset bytes and running on into the parts that follow; or
// from the Base release, which the host must have; or from Segments of either.
type Blob struct {
	Digest   v1.Hash   `json:"digest"`
	Size     int64     `json:"size"`
	Part     int       `json:"part,omitempty"`
	Offset   int64     `json:"offset,omitempty"`
	Base     bool      `json:"base,omitempty"`
	Segments []Segment `json:"segments,omitempty"`
	// Chunks are the marks of each ChunkSize bytes, the last one shorter: by
	// them a later release finds what has not changed. They prove nothing. A
	// blob that fits into one chunk has none.
	Chunks []Mark `json:"chunks,omitempty"`
	// States are the states of the blob's own sha256 after each chunk but the
	// last, by which a reader proves a chunk: see Blob.Piece.
	States []content.State `json:"states,omitempty"`
}

// Mark tells chunks apart that nobody made equal on purpose: XXH3 of 128 bits,
// big-endian. It costs a twentieth of sha256. Two chunks with one mark make a
// differential bundle that hosts refuse, as the states don't fit.
type Mark [16]byte

// MarkOf returns the mark of a chunk.
func MarkOf(chunk []byte) Mark { return xxh3.Hash128(chunk).Bytes() }

// MarshalText writes hex.
func (m Mark) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, m[:]), nil }

// UnmarshalText reads 32 hex digits.
func (m *Mark) UnmarshalText(b []byte) error {
	if len(b) != 2*len(m) {
		return fmt.Errorf("mark has %d characters, want %d", len(b), 2*len(m))
	}
	_, err := hex.Decode(m[:], b)
	return err
}

// Piece hashes data, which is to be chunk i, from the state before it, and
// compares with the state after it, or with the digest after the last one. So
// each byte is summed once for the chunk and for the blob. Other bytes than the
// signed ones are an ErrTampered.
func (b Blob) Piece(i int, data []byte) (content.Piece, error) {
	if _, n := b.Chunk(i); int64(len(data)) != n {
		return content.Piece{}, &TamperedError{What: "blob " + b.Digest.String(), Detail: fmt.Sprintf("chunk %d has %d bytes, want %d", i, len(data), n)}
	}
	from := content.StartState
	if i > 0 {
		from = b.States[i-1]
	}
	p, err := from.Piece(int64(i)*ChunkSize, data)
	if err != nil {
		return p, err
	}
	got, want := p.Digest().String(), b.Digest.String()
	if i < len(b.States) {
		s, err := p.State()
		if err != nil {
			return p, err
		}
		got, want = s.String(), b.States[i].String()
	}
	if got != want {
		return content.Piece{}, &TamperedError{What: "blob " + b.Digest.String(), Detail: fmt.Sprintf("chunk %d leads to %s, want %s", i, got, want)}
	}
	return p, nil
}

// Segment is a run of whole chunks of a blob: Length bytes from Offset of the
// blob From, which the host has, or, without From, from Offset of Part.
type Segment struct {
	From   v1.Hash `json:"from,omitzero"`
	Part   int     `json:"part,omitempty"`
	Offset int64   `json:"offset,omitempty"`
	Length int64   `json:"length"`
}

// OnMedia says whether the segment's bytes lie in the parts.
func (s Segment) OnMedia() bool { return s.From == v1.Hash{} }

// Sources returns where the blob's bytes come from, in order. A blob of the
// base is one segment of itself.
func (b Blob) Sources() []Segment {
	switch {
	case b.Base:
		return []Segment{{From: b.Digest, Length: b.Size}}
	case len(b.Segments) > 0:
		return b.Segments
	}
	return []Segment{{Part: b.Part, Offset: b.Offset, Length: b.Size}}
}

// OnMedia returns how many of the blob's bytes lie in the parts.
func (b Blob) OnMedia() (n int64) {
	for _, s := range b.Sources() {
		if s.OnMedia() {
			n += s.Length
		}
	}
	return n
}

// Source returns where chunk i comes from: the segment of that chunk alone. In
// one that lies on the media, Offset may lie beyond the end of Part, by as many
// bytes as it lies in the parts that follow.
func (b Blob) Source(i int) Segment {
	_, n := b.Chunk(i)
	at := int64(i) * ChunkSize
	for _, s := range b.Sources() {
		if at < s.Length || s.Length == 0 {
			s.Offset, s.Length = s.Offset+at, n
			return s
		}
		at -= s.Length
	}
	return Segment{} // can't be: checked by OpenIndex
}

// Chunk returns the mark and the length in bytes of chunk i. A blob of one
// chunk has no mark.
func (b Blob) Chunk(i int) (m Mark, n int64) {
	if len(b.Chunks) > 0 {
		m = b.Chunks[i]
	}
	return m, min(b.Size-int64(i)*ChunkSize, ChunkSize)
}

// Len returns the number of chunks; an empty blob has one, of no bytes.
func (b Blob) Len() int { return max(1, len(b.Chunks)) }

// Place is where a blob begins.
type Place struct {
	Part   int // from 1
	Offset int64
}

// Stretches of Large bytes or more begin at a multiple of Block bytes of their
// part: so a whole chunk goes from a disk's blocks to memory and on to other
// blocks, past the page cache and without being moved. The bytes that are passed
// over, less than Block, are zero.
const (
	Large = 1 << 20
	Block = 4096
)

// Gap is a stretch of a part's payload that belongs to no blob.
type Gap struct {
	Part   int // from 1
	Offset int64
	Length int64
}

// layout walks through parts whose payload lens gives.
type layout struct {
	lens func(part int) int64 // of part p, from 0; 0 behind the last one
	p    int
	off  int64
	gaps []Gap
}

// turn goes on to the next part.
func (l *layout) turn() { l.p, l.off = l.p+1, 0 }

// gap passes over what is left of a block.
func (l *layout) gap() {
	n := min((l.off+Block-1)/Block*Block, l.lens(l.p)) - l.off
	if n > 0 {
		l.gaps = append(l.gaps, Gap{l.p + 1, l.off, n})
		l.off += n
	}
}

// place puts n bytes where the walk has come to, and says how many have no room.
func (l *layout) place(n int64) (at Place, short int64) {
	if n >= Large {
		l.gap()
	}
	if l.off == l.lens(l.p) && l.lens(l.p+1) > 0 {
		l.turn()
	}
	at = Place{l.p + 1, l.off}
	for l.off+n > l.lens(l.p) {
		n -= l.lens(l.p) - l.off
		if l.turn(); l.lens(l.p) == 0 {
			return at, n
		}
	}
	l.off += n
	return at, 0
}

// Lay lays blobs of the given sizes one after the other into parts of size bytes,
// and returns where each begins and the payload of each part: none for nothing. A
// blob begins in the next part when the current one is full.
func Lay(sizes []int64, size int64) (at []Place, parts []int64) {
	l := layout{lens: func(int) int64 { return size }}
	for _, n := range sizes {
		p, _ := l.place(n)
		at = append(at, p)
	}
	for range l.p {
		parts = append(parts, size)
	}
	if l.off > 0 {
		parts = append(parts, l.off)
	}
	// Without bytes behind them, blobs of none stand at the end of the last part.
	for i := range at {
		if at[i].Part > len(parts) && len(parts) > 0 {
			at[i] = Place{len(parts), size}
		}
	}
	return at, parts
}

// Places is Lay for parts that are there: it returns where each blob must begin,
// and what lies between them. It is an error when the blobs don't end where the
// parts do.
func Places(sizes, parts []int64) ([]Place, []Gap, error) {
	at := make([]Place, len(sizes))
	if len(parts) == 0 {
		parts = []int64{0} // nothing but the base's blobs
	}
	l := layout{lens: func(p int) int64 {
		if p >= len(parts) {
			return 0
		}
		return parts[p]
	}}
	for i, n := range sizes {
		p, short := l.place(n)
		if short > 0 {
			return nil, nil, fmt.Errorf("index: blob %d does not fit: the parts are %d bytes short", i, short)
		}
		at[i] = p
	}
	if l.p != len(parts)-1 || l.off != parts[l.p] {
		return nil, nil, fmt.Errorf("index: the blobs end in %s at %d, want the end of %s", PartName(l.p+1), l.off, PartName(len(parts)))
	}
	return at, l.gaps, nil
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

// OpenIndex checks b, the bytes on the media, against the release and returns
// the index: right bytes, canonical form, and blobs that cover the parts
// exactly, without overlap. An encrypted one needs an identity; without one that
// fits, the error is ErrSealed. Its items are the release's (see Index.Items).
func (r Release) OpenIndex(b []byte, ids ...age.Identity) (Index, error) {
	if int64(len(b)) < r.Index.Size {
		return Index{}, fmt.Errorf("%w: index.json: got %d bytes, want %d", ErrIncomplete, len(b), r.Index.Size)
	}
	if int64(len(b)) > r.Index.Size {
		return Index{}, &TamperedError{What: "index.json", Detail: fmt.Sprintf("got %d bytes, want %d", len(b), r.Index.Size)}
	}
	if got := Sum(sha256.Sum256(b)); got != r.Index.SHA256 {
		return Index{}, &TamperedError{What: "index.json", Detail: fmt.Sprintf("got sha256 %s, want %s", got, r.Index.SHA256)}
	}
	if r.Encryption != "" {
		var err error
		if b, err = unseal(b, ids); err != nil {
			return Index{}, err
		}
	}
	x, err := decodeIndex(b)
	if err != nil {
		return Index{}, err
	}
	return x, x.check(r)
}

func decodeIndex(b []byte) (Index, error) {
	var x Index
	if err := decode(b, &x); err != nil {
		return Index{}, fmt.Errorf("index: %w", err)
	}
	canon, err := EncodeIndex(x)
	if err != nil {
		return Index{}, err
	}
	return x, same("index.json", b, canon)
}

// unseal decrypts a small file.
func unseal(b []byte, ids []age.Identity) ([]byte, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: name the file with the identity that it was encrypted to with --identity", ErrSealed)
	}
	r, err := age.Decrypt(bytes.NewReader(b), ids...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	out, err := io.ReadAll(io.LimitReader(r, MaxIndex+1))
	if err == nil && len(out) > MaxIndex {
		err = fmt.Errorf("more than %d bytes", MaxIndex)
	}
	if err != nil {
		return nil, &TamperedError{What: "index.json", Detail: "decrypt: " + err.Error()}
	}
	return out, nil
}

func (x Index) check(r Release) error {
	if x.Format != IndexFormat {
		return fmt.Errorf("index: format %.80q, want %s: made by another version of clawbox", x.Format, IndexFormat)
	}
	bySum := map[v1.Hash]int64{}
	var total int64
	for i, b := range x.Blobs {
		if err := b.check(r.Base != nil); err != nil {
			return fmt.Errorf("index: blob %d: %w", i, err)
		}
		if _, ok := bySum[b.Digest]; ok {
			return fmt.Errorf("index: blob %d: %s comes twice", i, b.Digest)
		}
		bySum[b.Digest] = b.Size
		if total += b.Size; total > MaxTotal {
			return fmt.Errorf("index: more than %d bytes", int64(MaxTotal))
		}
	}
	if err := x.checkItems(r, bySum, total); err != nil {
		return err
	}
	return x.checkPlaces(r.Parts)
}

// checkItems holds the items, wherever they stand, against the blobs.
func (x Index) checkItems(r Release, bySum map[v1.Hash]int64, total int64) error {
	items := r.Items
	if sealed := r.Encryption != ""; sealed {
		items = x.Items
		if err := checkItems(items); err != nil {
			return fmt.Errorf("index: %w", err)
		}
	} else if len(x.Items) > 0 {
		return fmt.Errorf("index: %d items, want them in release.note: only an encrypted release has them here", len(x.Items))
	}
	for _, it := range items {
		if n, ok := bySum[it.Descriptor.Digest]; !ok || n != it.Descriptor.Size {
			return fmt.Errorf("index: item %s: manifest %s of %d bytes is not among the blobs", it.Name, it.Descriptor.Digest, it.Descriptor.Size)
		}
		if it.TotalSize > total {
			return fmt.Errorf("index: item %s: %d bytes in a bundle of %d", it.Name, it.TotalSize, total)
		}
	}
	return nil
}

// checkPlaces: what lies on the media lies there one after the other.
func (x Index) checkPlaces(parts []Part) error {
	_, err := x.Gaps(parts)
	return err
}

// Gaps returns what lies between the blobs, and holds their places against those
// that the sizes give.
func (x Index) Gaps(parts []Part) ([]Gap, error) {
	var lens, sizes []int64
	var got []Place
	for _, p := range parts {
		lens = append(lens, p.Payload())
	}
	for _, b := range x.Blobs {
		for _, s := range b.Sources() {
			if s.OnMedia() {
				sizes, got = append(sizes, s.Length), append(got, Place{s.Part, s.Offset})
			}
		}
	}
	at, gaps, err := Places(sizes, lens)
	if err != nil {
		return nil, err
	}
	for i, p := range got {
		if p != at[i] {
			return nil, fmt.Errorf("index: stretch %d of the payload: part %d offset %d, want part %d offset %d", i, p.Part, p.Offset, at[i].Part, at[i].Offset)
		}
	}
	return gaps, nil
}

func (b Blob) check(hasBase bool) error {
	if _, err := SumOf(b.Digest); err != nil {
		return err
	}
	if b.Size < 0 || b.Size > MaxTotal {
		return fmt.Errorf("%s: %d bytes, want 0 to %d", b.Digest, b.Size, int64(MaxTotal))
	}
	want := 0
	if b.Size > ChunkSize {
		want = int((b.Size + ChunkSize - 1) / ChunkSize)
	}
	if len(b.Chunks) != want {
		return fmt.Errorf("%s: %d marks for %d bytes, want %d", b.Digest, len(b.Chunks), b.Size, want)
	}
	if len(b.States) != max(0, want-1) {
		return fmt.Errorf("%s: %d states for %d bytes, want %d", b.Digest, len(b.States), b.Size, max(0, want-1))
	}
	if !b.Base && len(b.Segments) == 0 {
		return nil // its place is checked with the others
	}
	if err := b.checkBase(hasBase); err != nil {
		return fmt.Errorf("%s: %w", b.Digest, err)
	}
	return nil
}

// checkBase holds a blob that is not wholly on the media against its rules.
func (b Blob) checkBase(hasBase bool) error {
	switch {
	case !hasBase:
		return fmt.Errorf("it builds upon a base, and the release names none")
	case b.Part != 0 || b.Offset != 0 || b.Base && len(b.Segments) > 0:
		return fmt.Errorf("more than one of a place, base and segments")
	}
	var n int64
	for i, s := range b.Segments {
		if s.Length < 1 || s.Length > b.Size-n || n+s.Length < b.Size && s.Length%ChunkSize != 0 {
			return fmt.Errorf("segment %d has %d bytes, want whole chunks and %d in all", i, s.Length, b.Size)
		}
		n += s.Length
		if s.OnMedia() {
			continue
		}
		if _, err := SumOf(s.From); err != nil {
			return err
		}
		if s.Part != 0 || s.Offset < 0 || s.Offset%ChunkSize != 0 || s.Offset > MaxTotal {
			return fmt.Errorf("segment %d: part %d offset %d of %s, want no part and whole chunks", i, s.Part, s.Offset, s.From)
		}
	}
	if n != b.Size && !b.Base {
		return fmt.Errorf("segments of %d bytes, want %d", n, b.Size)
	}
	return nil
}
