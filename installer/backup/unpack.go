package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/klauspost/compress/zstd"
)

// ageHead begins an encrypted backup.
const ageHead = "age-encryption.org/v1\n"

// unpacked is a backup whose files are what its list says.
type unpacked struct {
	about About
	text  string // what has to be signed
	note  []byte // the signature, not looked at
}

// unpack reads a whole backup into dir, which it fills with PART/PATH, or nowhere
// where dir is "", and proves every file before it returns. Who signed it, the
// caller asks.
func unpack(ctx context.Context, r io.Reader, dir string, ids []age.Identity) (unpacked, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	head, err := in.Peek(len(ageHead))
	if err != nil && !errors.Is(err, io.EOF) {
		return unpacked{}, err
	}
	r = in
	sealed := string(head) == ageHead
	if sealed {
		if len(ids) == 0 {
			return unpacked{}, errors.New("the backup is encrypted: name the identity that it was made for with --identity")
		}
		if r, err = age.Decrypt(in, ids...); err != nil {
			return unpacked{}, fmt.Errorf("decrypt the backup: %w", err)
		}
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return unpacked{}, err
	}
	defer z.Close()
	u := &unpacking{dir: dir, sealed: sealed, got: map[string]File{}}
	if err := u.all(ctx, tar.NewReader(z)); err != nil {
		return unpacked{}, fmt.Errorf("backup: %w", err)
	}
	return u.unpacked, u.prove()
}

// unpacking is one unpack at work.
type unpacking struct {
	dir    string
	sealed bool // it was encrypted
	got    map[string]File
	unpacked
}

func (u *unpacking) all(ctx context.Context, t *tar.Reader) error {
	for {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: it is no backup, or damaged", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case u.note != nil || u.text != "" && h.Name != noteFile:
			return fmt.Errorf("got %.80q after its list", h.Name)
		case sparse(h):
			return fmt.Errorf("got %.80q in a sparse form, which no backup has: somebody has put it there; take another copy", h.Name)
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("got %.80q, which is no regular file", h.Name)
		case h.Name == aboutFile:
			err = u.readAbout(t)
		case u.text != "":
			u.note, err = io.ReadAll(io.LimitReader(t, maxNote))
		default:
			err = u.file(content.WithContext(ctx, t), h)
		}
		if err != nil {
			return err
		}
	}
}

// readAbout reads the list, strictly.
func (u *unpacking) readAbout(t *tar.Reader) error {
	b, err := io.ReadAll(io.LimitReader(t, maxAbout))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&u.about); err != nil {
		return fmt.Errorf("%s: %w", aboutFile, err)
	}
	if u.about.Format != Format || d.More() {
		return fmt.Errorf("%s: got format %.80q; wanted %s: it was made by another version of clawbox", aboutFile, u.about.Format, Format)
	}
	if u.about.Keys && !u.sealed {
		return fmt.Errorf("%s says that keys are in a backup that is not encrypted; wanted them in an encrypted one only; take another copy", aboutFile)
	}
	u.text = noteText(b)
	return nil
}

// sparse says whether a few bytes stand for a file of any size.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// file reads one file, and writes it with holes where it has nothing but zeros.
func (u *unpacking) file(t io.Reader, h *tar.Header) error {
	name, rel, ok := strings.Cut(h.Name, "/")
	i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
	if !ok || !fs.ValidPath(rel) || i < 0 {
		return fmt.Errorf("got a file named %.80q; wanted one of a part of the state", h.Name)
	}
	// Write takes no others; who edits the file could have any placed.
	if want := parts[i].want; want != nil && !want(rel) {
		return fmt.Errorf("got %.80q, which is not of the part %s; somebody has put it there; take another copy", h.Name, name)
	}
	if parts[i].secret && !u.sealed {
		return fmt.Errorf("got %.80q, which is secret, in a backup that is not encrypted; wanted it in an encrypted one only: somebody has put it there; take another copy", h.Name)
	}
	if _, twice := u.got[h.Name]; twice {
		return fmt.Errorf("got %.80q a second time", h.Name)
	}
	sum := sha256.New()
	var err error
	if u.dir == "" {
		_, err = io.Copy(sum, t)
	} else {
		err = spread(filepath.Join(u.dir, name, rel), h.Size, io.TeeReader(t, sum))
	}
	u.got[h.Name] = File{Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))}
	return err
}

// spread writes what r has, n bytes, to a new file, and flushes it.
func spread(path string, n int64, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(&holes{f: f}, r); err == nil {
		err = f.Truncate(n) // the last hole
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// prove holds what came against the list, and gives each file its owner and
// mode; folders are flushed.
func (u *unpacking) prove() error {
	if u.note == nil {
		return fmt.Errorf("backup: got no %s at its end: it was cut off; take another copy", noteFile)
	}
	if len(u.got) != len(u.about.Files) {
		return fmt.Errorf("backup: got %d files; its list has %d", len(u.got), len(u.about.Files))
	}
	for _, f := range u.about.Files {
		g, ok := u.got[f.name()]
		if !ok || g.Size != f.Size || g.SHA256 != f.SHA256 {
			return fmt.Errorf("backup: %.120q is not what its list says; take another copy", f.name())
		}
		delete(u.got, f.name()) // a second line is for no file
		if u.dir == "" {
			continue
		}
		path := filepath.Join(u.dir, f.Part, f.Path)
		if err := errors.Join(os.Lchown(path, f.UID, f.GID), os.Chmod(path, f.Mode.Perm())); err != nil {
			return err
		}
	}
	if u.dir == "" {
		return nil
	}
	return filepath.WalkDir(u.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(p)
	})
}

// holes is a file that is not written where only zeros go.
type holes struct{ f *os.File }

// block is the unit of holes, in bytes; Copy's buffer is a multiple of it.
const block = 4 << 10

var zeros [block]byte

func (h *holes) Write(b []byte) (n int, err error) {
	for n < len(b) {
		k := min(block, len(b)-n)
		if bytes.Equal(b[n:n+k], zeros[:k]) {
			_, err = h.f.Seek(int64(k), io.SeekCurrent)
		} else {
			_, err = h.f.Write(b[n : n+k])
		}
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}
