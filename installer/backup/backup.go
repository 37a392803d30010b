// Package backup copies an appliance's state out and puts it back.
//
//	about, err := backup.Write(ctx, w, "/", backup.Options{Recipients: rs})
//	about, err = backup.Restore(ctx, r, "/", backup.RestoreOptions{Identities: ids, Operator: "ann"})
//
// A backup is one file: a tar archive in zstd, and around that, where there are
// recipients, age (age-encryption.org/v1). Its last two entries are backup.json
// (About), which lists every other entry with size and sha256, and backup.note, by
// which the ledger's key signs that list: an archive that was cut has none, and
// nobody else can edit one. It holds the configuration, the ledger, receipts, standing answers,
// agents' records and snapshots, and for reading the release's policies. Private
// keys and credentials are in it only when it is encrypted. What agents have
// written is in it as far as there are snapshots of it. Of a cluster's server it
// has K3s's datastore, and, encrypted, K3s's certificates and token; tenants'
// volumes are not in it.
//
// The ledger is copied first, and the copy is verified: a backup that could not
// be restored is not written.
//
// Restore reads the file twice: to verify list and signature, which nothing is
// written for, then to unpack it beside the state, where everything is verified
// again before something is replaced. It takes what the key of the ledger in place
// has signed, or the key that the operator names. It refuses a ledger that is
// shorter than the one in place, or that does not go on from it; what it replaces
// is moved aside, never deleted. Cut off and given again it arrives at the same result.
//
// Limits: the same release has to be installed as was backed up, with the same
// paths. Images and models are not in a backup: the media have them.
package backup

import (
	"archive/tar"
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
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/installer"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"
)

// Format heads About, in aboutFile.
const (
	Format    = "clawbox.io/backup/v2"
	aboutFile = "backup.json"
	maxAbout  = 256 << 20 // bytes
)

// About says what a backup holds.
type About struct {
	Format   string    `json:"format"`
	Created  time.Time `json:"created"`
	Host     string    `json:"host"`
	Version  string    `json:"version"`
	Sequence int64     `json:"sequence"`
	Digest   string    `json:"digest"`    // of the signed release
	Key      string    `json:"ledgerKey"` // public, which signs this; for people only
	Keys     bool      `json:"keys"`      // private keys and credentials are in it
	Entries  int64     `json:"ledgerEntries"`
	Files    []File    `json:"files"`
}

// File is one entry, PART/PATH.
type File struct {
	Part   string      `json:"part"`
	Path   string      `json:"path"`
	Mode   fs.FileMode `json:"mode"`
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`
}

func (f File) name() string { return f.Part + "/" + f.Path }

// Options are whom to encrypt to; without any, no key is in the backup.
type Options struct {
	Recipients []age.Recipient
}

// writing is one Write at work.
type writing struct {
	tar   *tar.Writer
	cfg   config.Config
	l     installer.Layout
	about About
	key   note.Signer
	copy  string // of the ledger
}

// Write writes a backup of the installation below root, which may run.
func Write(ctx context.Context, out io.Writer, root string, o Options) (About, error) {
	l := installer.Layout{Prefix: root}
	version, sequence, digest, err := l.Committed()
	if err != nil {
		return About{}, err
	}
	cfg, err := config.Load(l.Config())
	if err != nil {
		return About{}, err
	}
	host, _ := os.Hostname() // for people only
	w := &writing{cfg: cfg, l: l, about: About{
		Format: Format, Created: time.Now().UTC().Truncate(time.Second), Host: host,
		Version: version, Sequence: sequence, Digest: digest, Keys: len(o.Recipients) > 0,
	}}
	if w.key, err = readKey(l.LedgerS(), note.NewSigner); err != nil {
		return About{}, err
	}
	if w.about.Key, err = w.public(); err != nil {
		return About{}, err
	}
	release, err := l.Hold() // no upgrade changes state meanwhile
	if err != nil {
		return About{}, err
	}
	defer release()
	w.copy = filepath.Join(l.Install(), ".backup")
	defer os.RemoveAll(w.copy)
	if err := w.copyLedger(ctx); err != nil {
		return About{}, err
	}
	if err := w.copyDatastore(ctx); err != nil {
		return About{}, err
	}
	return w.about, w.stream(ctx, out, o.Recipients)
}

// stream puts the layers around the archive.
func (w *writing) stream(ctx context.Context, out io.Writer, rs []age.Recipient) (err error) {
	closers := []io.Closer{}
	if len(rs) > 0 {
		sealed, err := age.Encrypt(out, rs...)
		if err != nil {
			return fmt.Errorf("encrypt: %w", err)
		}
		out, closers = sealed, append(closers, sealed)
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	w.tar = tar.NewWriter(z)
	closers = append([]io.Closer{w.tar, z}, closers...)
	if err := w.all(ctx); err != nil {
		return err
	}
	for _, c := range closers {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (w *writing) all(ctx context.Context) error {
	for _, p := range parts {
		if p.secret && !w.about.Keys {
			continue
		}
		root, found, err := p.find(w)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, f := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.add(p.name, root, f); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	b, err := json.MarshalIndent(w.about, "", "  ")
	if err != nil {
		return err
	}
	if len(b) > maxAbout {
		return fmt.Errorf("got a list of %d bytes for %d files; wanted at most %d, which a restore reads; remove snapshots that nobody needs", len(b), len(w.about.Files), maxAbout)
	}
	sig, err := sign(b, w.key)
	if err != nil {
		return err
	}
	return errors.Join(w.text(aboutFile, b), w.text(noteFile, sig))
}

// text writes an entry that is on no list.
func (w *writing) text(name string, b []byte) error {
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(b)), ModTime: w.about.Created}); err != nil {
		return err
	}
	_, err := w.tar.Write(b)
	return err
}

// add writes one file and its line. One that grows meanwhile is taken as long
// as it was; one that shrinks is an error.
func (w *writing) add(part, root, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return err
	}
	e := File{Part: part, Path: rel, Mode: st.Mode().Perm(), Size: st.Size(), UID: -1, GID: -1}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		e.UID, e.GID = int(s.Uid), int(s.Gid)
	}
	if err := w.tar.WriteHeader(&tar.Header{Name: e.name(), Typeflag: tar.TypeReg, Mode: int64(e.Mode), Size: e.Size, ModTime: st.ModTime()}); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(w.tar, h), f, e.Size); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	e.SHA256 = hex.EncodeToString(h.Sum(nil))
	w.about.Files = append(w.about.Files, e)
	return nil
}

// copyTries is how often a ledger that is being written is copied: a copy in
// which a rotation fell does not verify.
const copyTries = 5

// copyLedger makes the copy, and proves it.
func (w *writing) copyLedger(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(w.cfg.Paths.Ledger, "checkpoint")); errors.Is(err, fs.ErrNotExist) {
		return nil // it has never run
	}
	v, err := verifier(w.l.LedgerV())
	if err != nil {
		return err
	}
	for range copyTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err = errors.Join(os.RemoveAll(w.copy), os.Mkdir(w.copy, 0o700)); err != nil {
			return err
		}
		// os.CopyFS keeps no mode; the owner is the service's either way.
		if err = os.CopyFS(filepath.Join(w.copy, "ledger"), os.DirFS(w.cfg.Paths.Ledger)); err != nil {
			continue // a file went meanwhile
		}
		var r ledger.Report
		if r, err = ledger.Verify(filepath.Join(w.copy, "ledger"), v, ledger.Options{}); err == nil {
			w.about.Entries = r.Size
			return nil
		}
	}
	return fmt.Errorf("the ledger could not be copied so that the copy verifies: %w; see what 'clawbox audit verify' says", err)
}

// copyDatastore makes a copy in which no write of K3s's has fallen half.
func (w *writing) copyDatastore(ctx context.Context) error {
	dir := filepath.Join(w.copy, "datastore")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := installer.CopyDatastore(ctx, w.l, dir)
	return err
}
