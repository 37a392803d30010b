// Package layer reads the layers of container images as streams, for those who
// look at what is in them: the SBOM and the scan for secrets.
//
//	err := layer.Walk(ctx, blob, func(e layer.Entry, body io.Reader) error { … })
//
// A layer is a tar file, plain or packed with gzip or zstd, which its first
// bytes tell. Nothing is unpacked to disk. Layers come from strangers: names are
// cleaned and can't leave the root, memory is bounded whatever the headers claim,
// and a layer that unpacks to more than Limit bytes or entries is refused.
package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Bounds of one layer. The largest published images have some 10^6 files and
// 40 GB in a layer.
const (
	Limit      = 1 << 40 // bytes, unpacked
	MaxEntries = 8 << 20
	maxWindow  = 128 << 20 // bytes that zstd may look back
)

// Entry is one member of a layer.
type Entry struct {
	Path string // clean, relative, with slashes; "." is the root
	Mode fs.FileMode
	Size int64
	Link string // target of a symbolic or hard link, as it is written
	// Gone: the path, and all below it, of lower layers is not in this image.
	Gone bool
	// Opaque: what lower layers have below the path is not in this image.
	Opaque bool
}

// Regular says that the entry has a body.
func (e Entry) Regular() bool { return e.Mode.IsRegular() && e.Link == "" && !e.Gone && !e.Opaque }

// Whiteouts: OCI image-spec, layer.md.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Walk calls visit for each entry, in order. The body needs not be read.
func Walk(ctx context.Context, r io.Reader, visit func(e Entry, body io.Reader) error) error {
	in, done, err := unpack(ctxReader{ctx, r})
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	defer done()
	left := &limited{in, Limit}
	t := tar.NewReader(left)
	size := int64(0) // a sparse file's holes are in no input
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("layer: %w", err)
		}
		if size += h.Size; n >= MaxEntries || h.Size < 0 || size < 0 || size > Limit {
			return fmt.Errorf("layer: more than %d entries or %d bytes", MaxEntries, int64(Limit))
		}
		e, ok := entry(h)
		if e.Gone && e.Path == "" {
			return fmt.Errorf("layer: whiteout %.80q removes no name", h.Name)
		}
		if !ok {
			continue
		}
		if err := visit(e, t); err != nil {
			return err
		}
	}
	// What follows the end of the archive is padding; read it, so that a digest
	// beside us sees the whole blob.
	_, err = io.Copy(io.Discard, left)
	return err
}

// entry makes an Entry of a header; false for what is nothing in an image.
func entry(h *tar.Header) (Entry, bool) {
	e := Entry{Path: clean(h.Name), Mode: h.FileInfo().Mode(), Size: h.Size}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return e, false
	}
	if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
		e.Link = h.Linkname
		if e.Link == "" {
			return e, false
		}
	}
	dir, base := path.Split(e.Path)
	switch {
	case base == opaque:
		e.Path, e.Opaque = clean(dir), true
	case strings.HasPrefix(base, whiteout+whiteout): // aufs' own bookkeeping
		return e, false
	case strings.HasPrefix(base, whiteout):
		e.Path, e.Gone = clean(dir+strings.TrimPrefix(base, whiteout)), true
		if name := strings.TrimPrefix(base, whiteout); name == "" || name == "." || name == ".." {
			e.Path = "" // it would hide other things than it says
		}
	}
	return e, true
}

// clean roots a name: no "..", no leading slash.
func clean(name string) string {
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if p == "" {
		return "."
	}
	return p
}

// unpack tells the compression by the first bytes.
func unpack(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		return z, func() {}, err
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.IgnoreChecksum(true)) // whoever uses a layer holds it to its digest
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// limited is io.LimitReader with an error.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("it unpacks to more than %d bytes", int64(Limit))
	}
	return n, err
}
