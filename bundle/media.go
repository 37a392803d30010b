package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// Media is a bundle on one or several directories, whose signature and index
// have been verified and whose parts are all there with the right size, or can
// be rebuilt from parity. It writes nothing to them.
type Media struct {
	release manifest.Release // with the items of the index, when that has them
	index   manifest.Index
	signers []string
	trust   manifest.Trust
	note    []byte
	dirs    []string
	parts   []string // paths, by number - 1; "" for one that is lost
	parity  []string // the same
	blobs   map[v1.Hash]manifest.Blob
	ids     []age.Identity
	names   *owners
	beyond  *beyond

	open  func(path string) (mediaFile, int64, error)
	pause func(try int) time.Duration // before another try, after a read error
}

// MediaOptions says what to open, and what is known before.
type MediaOptions struct {
	Trust      manifest.Trust
	Dirs       []string       // where the sticks are mounted, in any order
	Identities []age.Identity // to decrypt with
}

// OpenMedia opens the bundle below dirs: one directory, or the mount points of
// all the sticks that carry it, in any order. It reads no more than 16 MiB. A
// bundle that trust didn't sign is manifest.ErrUntrusted; one with other bytes
// than were signed, or with files in clawbox/ that the release doesn't name, is
// manifest.ErrTampered; one of which something is missing or cut off is
// manifest.ErrIncomplete, and a part is named with its size.
//
// A part that is missing or cut off is none of these when enough parity parts
// are there to rebuild it.
func OpenMedia(trust manifest.Trust, dirs ...string) (*Media, error) {
	return MediaOptions{Trust: trust, Dirs: dirs}.Open()
}

// Open is OpenMedia for encrypted media, too. When the trust is a root, the
// roots on the media are followed first; Trust returns where they led.
func (o MediaOptions) Open() (*Media, error) {
	m, err := o.media()
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{func() error { return m.verified(o.Trust) }, m.readIndex, m.find} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(m.strangers()...); err != nil {
		return nil, fmt.Errorf("media: %w", err)
	}
	return m, nil
}

// find looks for parts and parity parts. As many parts as there are parity
// parts may be missing.
func (m *Media) find() error {
	parts, parity := findParts(m.release, m.dirs), findParity(m.release, m.dirs)
	m.parts, m.parity = parts.whole(), parity.whole()
	lost := 0
	for _, p := range m.parts {
		if p == "" {
			lost++
		}
	}
	for _, p := range m.parity {
		if p == "" {
			lost++
		}
	}
	if lost <= len(m.parity) {
		return nil
	}
	err := parts.err(m.dirs)
	if len(m.parity) > 0 {
		err = fmt.Errorf("%w; %d of the %d parts and parity parts are missing or damaged, and %d can be rebuilt", err, lost, len(parts)+len(parity), len(m.parity))
	}
	return err
}

// Release returns the verified release, with its items.
func (m *Media) Release() manifest.Release { return m.release }

// Trust returns the trust that the media was opened with, or the newer root
// that its chain led to: what the host should keep (manifest.KeepRoot).
func (m *Media) Trust() manifest.Trust { return m.trust }

// Lost names the parts and parity parts that are missing or cut off, and that
// parity stands in for.
func (m *Media) Lost() (names []string) {
	for i, p := range m.parts {
		if p == "" {
			names = append(names, manifest.PartName(i+1))
		}
	}
	for i, p := range m.parity {
		if p == "" {
			names = append(names, manifest.ParityName(i+1))
		}
	}
	return names
}

// Signers returns the names of the trusted keys that signed.
func (m *Media) Signers() []string { return slices.Clone(m.signers) }

// Digest returns the sha256 of release.note: the identity of this release.
func (m *Media) Digest() v1.Hash { return manifest.Sum(sha256.Sum256(m.note)).Digest() }

// openFile opens a regular file for reading, and nothing that a hostile stick
// may have in its place: no link, device or pipe.
func openFile(path string) (*os.File, int64, error) {
	// To open some devices is to do something: a watchdog begins to count.
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is a %s, want a regular file", path, describeMode(fi.Mode()))
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is a %s, want a regular file", path, describeMode(fi.Mode()))
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// top is the bundle's own directory in dir: clawbox/ below it, or dir itself
// when that is where a release.note lies.
func top(dir string) string {
	sub := filepath.Join(dir, topDir)
	if _, err := os.Lstat(sub); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, noteFile)); err == nil {
			return dir
		}
	}
	return sub
}

// readTop reads a file of the bundle in dir, at most limit bytes.
func readTop(dir, name string, limit int64) ([]byte, error) {
	f, n, err := openFile(filepath.Join(top(dir), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if n > limit {
		return nil, &manifest.TamperedError{What: f.Name(), Detail: fmt.Sprintf("%d bytes, want at most %d", n, limit)}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// readNote finds release.note; where several sticks have one, they must agree.
func readNote(dirs []string) (note []byte, err error) {
	if len(dirs) == 0 {
		return nil, errors.New("media: no directory given: name where the bundle is mounted")
	}
	from := ""
	for _, d := range dirs {
		if _, err := os.Stat(top(d)); err != nil {
			return nil, fmt.Errorf("media: %w: there is no bundle in %s; is the stick mounted?", err, d)
		}
		b, err := readTop(d, noteFile, manifest.MaxNote)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("media: %w", err)
		case len(b) == 0:
			return nil, fmt.Errorf("media: %w: %s is empty: copy the bundle again", manifest.ErrIncomplete, filepath.Join(top(d), noteFile))
		case note != nil && !bytes.Equal(note, b):
			return nil, fmt.Errorf("media: %s and %s carry different releases: give the sticks of one only", from, d)
		default:
			note, from = b, d
		}
	}
	if note == nil {
		return nil, fmt.Errorf("media: %w (%w): no %s/%s in %s, as after an interrupted build or copy: copy the bundle again",
			manifest.ErrIncomplete, fs.ErrNotExist, topDir, noteFile, strings.Join(dirs, ", "))
	}
	return note, nil
}

// readRoot finds the root of a version; where several sticks have it, they must
// agree.
func (m *Media) readRoot(version int64) (root []byte, err error) {
	from := ""
	name := rootDir + "/" + manifest.RootName(version)
	for _, d := range m.dirs {
		b, err := readTop(d, name, manifest.MaxRoot)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case root != nil && !bytes.Equal(root, b):
			return nil, &manifest.TamperedError{What: filepath.Join(top(d), name), Detail: fmt.Sprintf("it is not the same as in %s: copy the bundle again", top(from))}
		default:
			root, from = b, d
		}
	}
	if root == nil {
		return nil, fs.ErrNotExist
	}
	return root, nil
}

// readIndex takes the first index.json; every copy must be the right one, or
// the stick that has it is not of this release.
func readIndex(r manifest.Release, dirs []string, ids ...age.Identity) (x manifest.Index, err error) {
	found := false
	for _, d := range dirs {
		b, err := readTop(d, indexFile, manifest.MaxIndex)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return x, fmt.Errorf("media: %w", err)
		}
		if x, err = r.OpenIndex(b, ids...); err != nil {
			if errors.Is(err, manifest.ErrSealed) {
				return x, fmt.Errorf("media %s: %w", d, err)
			}
			return x, fmt.Errorf("media %s: %w: copy the bundle again", d, err)
		}
		found = true
	}
	if !found {
		return x, fmt.Errorf("media: %w (%w): no %s/%s in %s: copy the bundle again", manifest.ErrIncomplete, fs.ErrNotExist, topDir, indexFile, strings.Join(dirs, ", "))
	}
	return x, nil
}

// PartInfo says where a part is. Path is empty when it is nowhere; Got is -1
// then, and otherwise the size that was found.
type PartInfo struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // wanted, in bytes
	Got  int64  `json:"got"`
	Path string `json:"path,omitempty"`
}

type partList []PartInfo

// findParts looks for each part in each directory. One with the right size is
// preferred; nothing is read.
func findParts(r manifest.Release, dirs []string) partList { return findFiles(r.Parts, partsDir, dirs) }

func findParity(r manifest.Release, dirs []string) partList {
	return findFiles(r.Parity, parityDir, dirs)
}

func findFiles(parts []manifest.Part, folder string, dirs []string) (out partList) {
	for _, p := range parts {
		i := PartInfo{Name: p.Name, Size: p.Size, Got: -1}
		for _, d := range dirs {
			path := filepath.Join(top(d), folder, p.Name)
			fi, err := os.Lstat(path)
			if err != nil || !fi.Mode().IsRegular() || i.Got == p.Size {
				continue
			}
			i.Path, i.Got = path, fi.Size()
		}
		out = append(out, i)
	}
	return out
}

// whole returns the paths of the parts that have the right size, "" for others.
func (l partList) whole() (paths []string) {
	for _, p := range l {
		if p.Got != p.Size {
			p.Path = ""
		}
		paths = append(paths, p.Path)
	}
	return paths
}

// err names every part that is missing or has another size.
func (l partList) err(dirs []string) error {
	var errs []error
	for _, p := range l {
		switch {
		case p.Got < 0:
			errs = append(errs, fmt.Errorf("%w: %s of %d bytes is missing in %s: plug in the stick that has it", manifest.ErrIncomplete, p.Name, p.Size, strings.Join(dirs, ", ")))
		case p.Got < p.Size:
			errs = append(errs, fmt.Errorf("%w: %s: got %d bytes, want %d: copy it again", manifest.ErrIncomplete, p.Path, p.Got, p.Size))
		case p.Got > p.Size:
			errs = append(errs, &manifest.TamperedError{What: p.Path, Detail: fmt.Sprintf("got %d bytes, want %d: copy it again", p.Got, p.Size)})
		}
	}
	if len(errs) > maxDamage {
		errs = append(errs[:maxDamage], fmt.Errorf("and %d more", len(errs)-maxDamage))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("media: %w", errors.Join(errs...))
}
