package sandbox

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

const tempPrefix = ".unpacking-"

// Names in a layer that mean removal.
// Source: OCI image-spec, layer.md, "Whiteouts".
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// layer returns the directory of the layer with diff id, unpacking blob when
// there is none yet. A directory under its final name is complete: it gets
// that name after its content is checked and on disk.
func (im *Images) layer(ctx context.Context, blob, diff v1.Hash) (string, error) {
	if diff.Algorithm != "sha256" || len(diff.Hex) != sha256.Size*2 {
		return "", fmt.Errorf("layer id %q; want sha256", diff)
	}
	final := filepath.Join(im.dir, diff.Hex)
	im.mu.Lock()
	defer im.mu.Unlock()
	if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
		return final, err
	}
	tmp, err := os.MkdirTemp(im.dir, tempPrefix)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // does nothing once it has its name
	if err := im.unpack(ctx, tmp, blob, diff); err != nil {
		return "", err
	}
	return final, durable.Rename(tmp, final)
}

func (im *Images) unpack(ctx context.Context, dir string, blob, diff v1.Hash) error {
	f, err := im.blobs.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := decompress(f)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	if err := extract(ctx, dir, io.TeeReader(r, sum)); err != nil {
		return err
	}
	// A tar reader stops at the end mark; the id covers what follows, too.
	if _, err := io.Copy(sum, r); err != nil {
		return err
	}
	if err := same(sum, diff); err != nil {
		return err
	}
	return syncfs(dir)
}

func same(sum hash.Hash, want v1.Hash) error {
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("unpacked content has sha256 %s, the image says %s: the image is damaged or forged; bundle it again", got, want.Hex)
	}
	return nil
}

// syncfs flushes the file system that holds dir: one call instead of one
// fsync for each of some ten thousand files.
func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// decompress looks at the first bytes rather than at the media type, which
// tools get wrong; the layer's id is checked on what comes out.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// unpacker writes one layer below root, which confines every path: no link
// in the layer leads out of it.
type unpacker struct {
	root *os.Root
}

// extract unpacks a tar stream into dir.
func extract(ctx context.Context, dir string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The temporary directory's 0700 would become the mode of the image's /.
	if err := root.Chmod(".", 0o755); err != nil {
		return err
	}
	u := unpacker{root}
	tr := tar.NewReader(r)
	for ctx.Err() == nil {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	return ctx.Err()
}

func (u unpacker) entry(h *tar.Header, r io.Reader) error {
	name, err := local(h.Name)
	if err != nil || h.Typeflag == tar.TypeXGlobalHeader {
		return err
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir) // "" becomes "."
	if err := u.mkdirs(dir); err != nil {
		return err
	}
	switch {
	case base == opaque:
		return u.opaque(dir)
	case strings.HasPrefix(base, whiteout):
		return u.whiteout(dir, strings.TrimPrefix(base, whiteout))
	}
	return u.make(name, h, r)
}

// local cleans a name and refuses one that climbs.
func local(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New(`name holds ".."; a layer that climbs out of its root is refused`)
	}
	if name = path.Clean("/" + name); name == "/" {
		return ".", nil
	}
	return name[1:], nil
}

// make creates one file, directory or link. Everything belongs to root and is
// readable: agents have users that the image knows nothing of, and what an
// agent may read is decided by its policy. Extended attributes are dropped,
// and with them file capabilities.
func (u unpacker) make(name string, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return u.mkdir(name)
	}
	// A later entry replaces an earlier one; not a directory by something else.
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(name, h, r)
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		to, err := local(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		return u.root.Link(to, name)
	}
	return fmt.Errorf("type %q is refused: an image may hold files, directories and links only, not devices or pipes", h.Typeflag)
}

func (u unpacker) mkdir(name string) error {
	st, err := u.root.Lstat(name)
	if err == nil && !st.IsDir() {
		if err := u.root.Remove(name); err != nil {
			return err
		}
	}
	return u.mkdirs(name)
}

// mkdirs makes name and what is missing above it, whatever the daemon's umask.
func (u unpacker) mkdirs(name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		err := u.root.Mkdir(name[:i], 0o755)
		if err == nil {
			err = u.root.Chmod(name[:i], 0o755)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (u unpacker) file(name string, h *tar.Header, r io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755 // setuid, setgid and sticky bits are gone by construction
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// Some runtimes compare a source's time with that of its compiled form.
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// opaque hides what lower layers have in dir.
// Source: the kernel's Documentation/filesystems/overlayfs.rst, "whiteouts
// and opaque directories".
func (u unpacker) opaque(dir string) error {
	d, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Fsetxattr(int(d.Fd()), "trusted.overlay.opaque", []byte("y"), 0)
}

// whiteout hides one name of the lower layers.
func (u unpacker) whiteout(dir, base string) error {
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("whiteout of %q; want a name", base)
	}
	// This layer's own file of that name stays; the whiteout is for those below.
	if _, err := u.root.Lstat(path.Join(dir, base)); err == nil {
		return nil
	}
	d, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Mknodat(int(d.Fd()), base, unix.S_IFCHR, 0)
}
