package ocimage

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// layer is a finished layer in the cache. It implements v1.Layer.
type layer struct {
	Name   string  `json:"name"`
	Hash   v1.Hash `json:"digest"`
	Plain  v1.Hash `json:"diffID"`
	Bytes  int64   `json:"size"`     // compressed
	Unpack int64   `json:"unpacked"` // the tar stream's length
	path   string
}

func (l *layer) Digest() (v1.Hash, error)             { return l.Hash, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.Plain, nil }
func (l *layer) Size() (int64, error)                 { return l.Bytes, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCILayerZStd, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return nil, errors.New("ocimage: not kept") }

// cached returns the stage's layer, making it unless a layer of the same inputs
// is there.
func (b *builder) cached(s stage) (*layer, error) {
	h := sha256.New()
	for _, in := range append([]string{formatVersion, s.name, runtime.GOARCH, b.epoch.String()}, s.input...) {
		fmt.Fprintf(h, "%d:%s,", len(in), in)
	}
	file := filepath.Join(b.WorkDir, "layers", fmt.Sprintf("%s-%x.tar.zst", s.name, h.Sum(nil)[:12]))
	if l, err := load(file); err == nil {
		return l, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fmt.Fprintf(b.Log, "ocimage: building layer %s\n", s.name)
	start := time.Now()
	l, err := b.make(s, file)
	if err == nil {
		fmt.Fprintf(b.Log, "ocimage: layer %s: %d MB, %d MB unpacked, %v\n", s.name, l.Bytes>>20, l.Unpack>>20, time.Since(start).Round(time.Second))
	}
	return l, err
}

// load reads a cached layer's description. The description is written last, so a layer that has
// one is whole.
func load(file string) (*layer, error) {
	raw, err := os.ReadFile(file + ".json")
	if err != nil {
		return nil, err
	}
	l := &layer{path: file}
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("%s.json: %w; remove it to build the layer again", file, err)
	}
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.Size() != l.Bytes {
		return nil, fmt.Errorf("%s has %d bytes, want %d; remove it to build the layer again", file, fi.Size(), l.Bytes)
	}
	return l, nil
}

// make fills a layer into a temporary file and gives it its name when complete.
func (b *builder) make(s stage, file string) (_ *layer, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".layer-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // a no-op once renamed
	defer f.Close()
	packed, plain := counter{w: f, h: sha256.New()}, counter{h: sha256.New()}
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	plain.w = z
	t := &tarball{w: tar.NewWriter(&plain), newest: b.epoch, seen: map[string]bool{}}
	if err := s.fill(t); err != nil {
		return nil, err
	}
	if err := errors.Join(t.w.Close(), z.Close(), f.Chmod(0o644), f.Sync()); err != nil {
		return nil, err
	}
	l := &layer{Name: s.name, Hash: packed.sum(), Plain: plain.sum(), Bytes: packed.n, Unpack: plain.n, path: file}
	raw, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return nil, err
	}
	return l, os.WriteFile(file+".json", raw, 0o644)
}

// counter hashes and counts what passes through.
type counter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.h.Write(b)
	c.n += int64(len(b))
	return c.w.Write(b)
}

func (c *counter) sum() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(c.h.Sum(nil))}
}

// tarball writes the entries of a layer in a form that depends on content only.
type tarball struct {
	w      *tar.Writer
	newest time.Time
	seen   map[string]bool // paths written, without slashes at either end
}

// add writes one entry. It clears what would differ between builds or give a
// right: owners, set-uid and set-gid bits, times of the build, extended attributes.
func (t *tarball) add(h *tar.Header, r io.Reader) error {
	name := strings.Trim(path.Clean("/"+h.Name), "/")
	if name == "" || t.seen[name] {
		return nil
	}
	if err := t.parents(path.Dir(name)); err != nil {
		return err
	}
	t.seen[name] = true
	clean := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size,
		Mode: h.Mode & 0o755, ModTime: h.ModTime.UTC().Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch h.Typeflag {
	case tar.TypeDir:
		clean.Name += "/"
		clean.Mode |= 0o1000 & h.Mode // the sticky bit of /tmp
		if h.Mode&0o1000 != 0 {
			clean.Mode |= 0o777
		}
	case tar.TypeLink:
		clean.Linkname = strings.Trim(path.Clean("/"+h.Linkname), "/")
	case tar.TypeReg, tar.TypeSymlink:
	default:
		return nil // devices, sockets and pipes have no place in an image
	}
	if clean.ModTime.After(t.newest) {
		clean.ModTime = t.newest
	}
	if err := t.w.WriteHeader(clean); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(t.w, r)
	return err
}

// parents writes the folders above an entry that no entry has named.
func (t *tarball) parents(dir string) error {
	if dir == "." || t.seen[dir] {
		return nil
	}
	return t.dir(dir, 0o755)
}

func (t *tarball) dir(name string, mode int64) error {
	return t.add(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: t.newest}, nil)
}

func (t *tarball) file(name, content string, mode int64) error {
	return t.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, ModTime: t.newest, Size: int64(len(content))}, strings.NewReader(content))
}

func (t *tarball) link(name, to string) error {
	return t.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777, ModTime: t.newest}, nil)
}

// tree adds the files below dir, as prefix/…, in lexical order, without those
// that drop (given the path below dir).
func (t *tarball) tree(dir, prefix string, drop func(string) bool) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if rel != "." && drop(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return t.copy(p, path.Join(prefix, rel), d)
	})
}

// copy adds one file, folder or symbolic link from the disk.
func (t *tarball) copy(p, name string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	to := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if to, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, to)
	if err != nil {
		return err
	}
	h.Name = name
	h.Mode |= 0o444 // every user reads
	if d.IsDir() {
		h.Mode |= 0o111
		h.ModTime = t.newest // a folder's time is the build's
	}
	if !fi.Mode().IsRegular() {
		return t.add(h, nil)
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.add(h, f)
}
