package sbom

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"github.com/clawbox/clawbox/bundle/layer"
)

// Seen is what one layer tells, whatever lies below and above it, so that a
// layer which many images share is read once. It can be kept as JSON: what was
// found, and 8 bytes for each entry.
type Seen struct {
	Told []Told `json:"told,omitempty"` // by path
	// What the layer does to those below it, by the marks of its paths: Files
	// replace what was at the path and below it, Folders what was at it, Opaque
	// what was below it.
	Files   Marks `json:"files,omitempty"`
	Folders Marks `json:"folders,omitempty"`
	Opaque  Marks `json:"opaque,omitempty"`
}

// Told is what one path of a layer tells.
type Told struct {
	Path     string    `json:"path"`
	Packages []Package `json:"packages,omitempty"`
	OS       *OS       `json:"os,omitempty"`
	Unread   string    `json:"unread,omitempty"`
}

// Marks are the beginnings of the sha256 of paths, 8 bytes each, sorted.
type Marks []byte

const markSize = 8

func markOf(p string) [markSize]byte {
	h := sha256.Sum256([]byte(p))
	return [markSize]byte(h[:])
}

func (m Marks) has(p string) bool {
	want, lo, hi := markOf(p), 0, len(m)/markSize
	for lo < hi {
		mid := (lo + hi) / 2
		switch bytes.Compare(m[mid*markSize:(mid+1)*markSize], want[:]) {
		case 0:
			return true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// markSet gathers marks.
type markSet map[[markSize]byte]bool

func (s markSet) sorted() Marks {
	keys := slices.SortedFunc(maps.Keys(s), func(a, b [markSize]byte) int { return bytes.Compare(a[:], b[:]) })
	var out Marks
	for _, k := range keys {
		out = append(out, k[:]...)
	}
	return out
}

// ReadLayer reads one layer as a stream, to its end. What can't be understood
// is told as unread; an error is one of reading, or of a layer that can't be
// unpacked. tee may be nil.
func ReadLayer(ctx context.Context, r io.Reader, tee func(layer.Entry) io.Writer) (Seen, error) {
	c := &collector{found: map[string]*file{}, files: markSet{}, folders: markSet{}, opaque: markSet{}}
	err := layer.Walk(ctx, r, func(e layer.Entry, body io.Reader) error {
		c.mark(e)
		if !e.Regular() {
			return nil
		}
		if err := c.teed(e, body, tee); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		return nil
	})
	if err != nil {
		return Seen{}, err
	}
	out := Seen{Files: c.files.sorted(), Folders: c.folders.sorted(), Opaque: c.opaque.sorted()}
	for _, p := range slices.Sorted(maps.Keys(c.found)) {
		f := c.found[p]
		out.Told = append(out.Told, Told{Path: p, Packages: f.packages, OS: f.os, Unread: f.unread})
	}
	return out, nil
}

// collector gathers what one layer tells.
type collector struct {
	found                  map[string]*file
	files, folders, opaque markSet
	total                  int // packages
}

// mark notes what the entry replaces. Whiteouts are about lower layers only.
func (c *collector) mark(e layer.Entry) {
	set := c.files
	switch {
	case e.Opaque:
		set = c.opaque
	case e.Gone:
	case e.Mode.IsDir():
		set = c.folders
	}
	set[markOf(e.Path)] = true
	if !e.Opaque && !e.Gone {
		delete(c.found, e.Path)
	}
}

// teed reads one file, all of it when the tee wants it.
func (c *collector) teed(e layer.Entry, body io.Reader, tee func(layer.Entry) io.Writer) error {
	var w io.Writer
	if tee != nil {
		w = tee(e)
	}
	if w == nil {
		return c.file(e, body)
	}
	body = io.TeeReader(body, w)
	err := c.file(e, body)
	if err == nil {
		_, err = io.Copy(io.Discard, body)
	}
	if cl, ok := w.(io.Closer); ok {
		err = errors.Join(err, cl.Close())
	}
	return err
}

func (c *collector) file(e layer.Entry, body io.Reader) error {
	f := &file{}
	s := source(e)
	if s == nil {
		return nil
	}
	if s.read == nil {
		f.unread = s.why
	} else if err := c.read(s, e, body, f); err != nil {
		return err
	}
	for j := range f.packages {
		f.packages[j].Path = e.Path
	}
	if c.total += len(f.packages); c.total > maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	if f.packages != nil || f.os != nil || f.unread != "" {
		c.found[e.Path] = f
	}
	return nil
}

// read calls the source's reader, and tells an error of the input, which ends
// the scan, from one of the format, which is noted.
func (c *collector) read(s *where, e layer.Entry, body io.Reader, f *file) error {
	in := &sticky{r: body}
	if !s.stream && e.Size > maxFile {
		f.unread = fmt.Sprintf("%d bytes, more than %d", e.Size, maxFile)
		return nil
	}
	err := s.read(in, f)
	if in.err != nil {
		return in.err
	}
	if err != nil {
		f.packages, f.unread = nil, err.Error()
	}
	return nil
}

// hides says whether the layer takes the path away from those below it.
func (s *Seen) hides(p string) bool {
	if s.Files.has(p) || s.Folders.has(p) {
		return true
	}
	for p != "." {
		if p = path.Dir(p); s.Files.has(p) || s.Opaque.has(p) {
			return true
		}
	}
	return false
}

// Merge puts layers together, the lowest first: what an upper layer replaces or
// hides counts no more.
func Merge(layers ...Seen) (Image, error) {
	found := map[string]Told{}
	for _, s := range layers {
		for p := range found {
			if s.hides(p) {
				delete(found, p)
			}
		}
		for _, t := range s.Told {
			found[t.Path] = t
		}
	}
	var out Image
	for _, p := range []string{"usr/lib/os-release", "etc/os-release"} { // the second wins
		if t := found[p]; t.OS != nil {
			out.OS = *t.OS
		}
	}
	for p, t := range found {
		out.Packages = append(out.Packages, t.Packages...)
		if t.Unread != "" {
			out.Unread = append(out.Unread, p+": "+t.Unread)
		}
	}
	if len(out.Packages) > maxPackages {
		return Image{}, fmt.Errorf("more than %d packages", maxPackages)
	}
	slices.Sort(out.Unread)
	slices.SortFunc(out.Packages, comparePackages)
	out.Packages = slices.CompactFunc(out.Packages, func(a, b Package) bool {
		a.Path = b.Path // the first path stands for all
		return a == b
	})
	return out, nil
}
