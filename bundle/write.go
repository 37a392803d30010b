package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// writing is the second half of a build: everything is in the pool, and now
// the media are written.
type writing struct {
	*build
	*outputs
	entries []entry
	items   []manifest.Item
	blobs   []manifest.Blob // as entries
	lens    []int64         // payload of each part
}

func (w *writing) run(ctx context.Context) (manifest.Release, error) {
	var err error
	if w.lens, err = w.settle(w.blobs); err != nil {
		return manifest.Release{}, err
	}
	if w.early != nil {
		return w.replace(ctx)
	}
	if err := w.each(func(dir string) error { return clearOut(dir, nil) }); err != nil {
		return manifest.Release{}, err
	}
	if r, ok, err := w.unchanged(); ok || err != nil {
		return r, err
	}
	return w.replace(ctx)
}

// replace puts a new bundle into the outputs, which are this build's alone.
func (w *writing) replace(ctx context.Context) (none manifest.Release, err error) {
	if err := w.place(); err != nil {
		return none, err
	}
	r, err := w.fill(ctx)
	if err != nil {
		return none, errors.Join(err, w.abandon())
	}
	for _, d := range w.list {
		if err := swap(d.Dir); err != nil {
			return none, fmt.Errorf("bundle: %w: the new bundle is complete in %s of each directory", err, newDir)
		}
	}
	blobs, files, err := w.kept()
	if err != nil {
		return r, err
	}
	return r, w.remember(r, blobs, files)
}

// place decides where the parts go. Those that layers were pulled to stay there.
func (w *writing) place() error {
	if w.early == nil {
		return w.spread(w.sizes(), smallFiles(w.blobs))
	}
	if !w.early.fits(w) {
		return errMoved
	}
	w.dirs = w.dirs[:len(w.early.parts.lens)]
	return w.spreadMore(w.sizes(), smallFiles(w.blobs))
}

// abandon removes what is being built, unless layers were pulled to there: the
// next build goes on with them.
func (w *writing) abandon() error {
	if w.early != nil {
		return nil
	}
	return w.each(func(dir string) error { return os.RemoveAll(filepath.Join(dir, newDir)) })
}

// sizes are those of parts and parity parts on the media, rounded up.
func (w *writing) sizes() (out []int64) {
	var longest int64
	for _, n := range w.lens {
		n = w.sealedSize(n)
		out, longest = append(out, n), max(longest, n)
	}
	for range w.Parity {
		if len(w.lens) > 0 {
			out = append(out, longest)
		}
	}
	return out
}

// fill writes a whole bundle beside the old one.
func (w *writing) fill(ctx context.Context) (none manifest.Release, err error) {
	if err := w.makeFolders(); err != nil {
		return none, err
	}
	part := func(n int) string { return w.file(n-1, newDir, partsDir, manifest.PartName(n)) }
	var pw payload = &rawParts{path: part, lens: w.lens}
	if len(w.recipients) > 0 {
		pw = &partWriter{path: part, lens: w.lens, recipients: w.recipients}
	}
	parts, err := w.writeParts(ctx, pw, w.lens, w.blobs, func(i int) string { return w.entries[i].item })
	if err != nil {
		return none, err
	}
	parity, err := w.writeParity(ctx, parts, part, func(n int) string {
		return w.file(len(parts)+n-1, newDir, parityDir, manifest.ParityName(n))
	})
	if err != nil {
		return none, err
	}
	return w.finish(parts, parity)
}

// folders are those below clawbox/ that the bundle has.
func (w *writing) folders() []string {
	out := []string{partsDir}
	if w.Parity > 0 {
		out = append(out, parityDir)
	}
	if len(w.Roots) > 0 {
		out = append(out, rootDir)
	}
	return out
}

func (w *writing) makeFolders() error {
	return w.each(func(dir string) error {
		for _, n := range w.folders() {
			if err := durable.MkdirAll(filepath.Join(dir, newDir, n), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}

// finish writes the small files, release.note last.
func (w *writing) finish(parts, parity []manifest.Part) (none manifest.Release, err error) {
	x, err := w.index()
	if err != nil {
		return none, err
	}
	if len(w.recipients) > 0 {
		if x, err = seal(x, w.recipients); err != nil {
			return none, err
		}
	}
	if len(x) > manifest.MaxIndex {
		return none, fmt.Errorf("bundle: index of %d bytes, want at most %d: make several bundles", len(x), manifest.MaxIndex)
	}
	note, r, err := w.sign(manifest.File{Size: int64(len(x)), SHA256: sha256.Sum256(x)}, parts, parity)
	if err != nil {
		return none, err
	}
	return r, w.each(func(dir string) error { return w.small(filepath.Join(dir, newDir), x, note) })
}

// small writes the files that every output gets.
func (w *writing) small(dir string, index, note []byte) error {
	for i, b := range w.Roots {
		if err := durable.WriteFile(filepath.Join(dir, rootDir, manifest.RootName(int64(i+1))), b, 0o644); err != nil {
			return err
		}
	}
	for _, n := range w.folders() {
		if err := durable.SyncDir(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(filepath.Join(dir, indexFile), index, 0o644); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, noteFile), note, 0o644)
}

// index is the plain index.
func (w *writing) index() ([]byte, error) {
	x := manifest.Index{Format: manifest.IndexFormat, Blobs: w.blobs}
	if len(w.recipients) > 0 {
		x.Items = w.items
	}
	return manifest.EncodeIndex(x)
}

// sign makes the release and its note. The release that it returns has its
// items, wherever they stand.
func (w *writing) sign(index manifest.File, parts, parity []manifest.Part) ([]byte, manifest.Release, error) {
	t, err := created(w.recipe, w.lock)
	if err != nil {
		return nil, manifest.Release{}, err
	}
	r := manifest.Release{
		Format: manifest.ReleaseFormat, Name: w.recipe.Metadata.Name, Version: w.recipe.Metadata.Version,
		Sequence: w.recipe.Sequence, UpgradesFrom: w.recipe.UpgradesFrom, Components: w.recipe.components(),
		Created: t, ChunkSize: manifest.ChunkSize, Base: w.baseOf(),
		Index: index, Parts: parts, Parity: parity, Items: w.items,
	}
	if r.Parts == nil {
		r.Parts = []manifest.Part{} // not null
	}
	for _, b := range w.Roots {
		r.Roots = append(r.Roots, manifest.File{Size: int64(len(b)), SHA256: sha256.Sum256(b)})
	}
	if w.root != nil {
		r.Roles.Release = w.root.Roles.Release
	}
	if len(w.recipients) > 0 {
		r.Encryption, r.Items = manifest.Age, nil
	}
	note, err := manifest.Sign(r, w.Signers...)
	if err != nil {
		return nil, r, err
	}
	if len(note) > manifest.MaxNote {
		return nil, r, fmt.Errorf("bundle: release.note of %d bytes, want at most %d: make several bundles", len(note), manifest.MaxNote)
	}
	trust, err := manifest.NewTrust(1, w.Signers[0].Key())
	if err != nil {
		return nil, r, err
	}
	r, _, err = trust.Open(note)
	r.Items = w.items
	return note, r, err
}

// memory is what a build remembers of the media that it wrote.
type memory struct {
	Key    string // all that the payload and its form depend on
	Index  manifest.File
	Parts  []manifest.Part
	Parity []manifest.Part
	Stamps map[string]stamp // of every file on the media, by absolute path
	// Blobs are those that no other place has, and Files the paths of the parts
	// that they lie in.
	Blobs []lain
	Files []string
}

// key sums up what decides about the bytes of parts and index. ok is false
// while the sums of some blob are not known.
func (w *writing) key() (key string, ok bool, err error) {
	for _, x := range w.blobs {
		if len(x.Chunks) == 0 && x.Size > manifest.ChunkSize {
			return "", false, nil
		}
	}
	x, err := w.index()
	if err != nil {
		return "", false, err
	}
	sum := sha256.Sum256(x)
	b, err := json.Marshal([]any{hex.EncodeToString(sum[:]), w.lens, w.Recipients, w.Parity, w.Roots, w.list, w.baseOf()})
	return string(b), true, err
}

// where names the outputs in the cache.
func (w *writing) where() (string, error) {
	s := ""
	err := w.each(func(dir string) error {
		abs, err := filepath.Abs(dir)
		s += abs + "\x00"
		return err
	})
	return s, err
}

// unchanged keeps the parts when the index is the same and no file on the media
// was touched since this cache's build wrote it: then only a new note may be
// needed. Nothing is read of the payload, and nothing need be: whoever changed
// the media without changing a stamp is found by the reader, as ever, because
// the note goes on naming the sums of the first writing.
func (w *writing) unchanged() (r manifest.Release, ok bool, err error) {
	key, ok, err := w.key()
	if !ok || err != nil {
		return r, false, err
	}
	where, err := w.where()
	if err != nil {
		return r, false, err
	}
	var m memory
	if !w.cache.get("media", where, &m) || m.Key != key || !m.holds() {
		return r, false, nil
	}
	note, r, err := w.sign(m.Index, m.Parts, m.Parity)
	if err != nil {
		return r, false, err
	}
	fresh := false
	for _, d := range w.list {
		p := filepath.Join(d.Dir, topDir, noteFile)
		if old, err := os.ReadFile(p); err == nil && string(old) == string(note) {
			continue
		}
		if err := durable.WriteFile(p, note, 0o644); err != nil {
			return r, false, fmt.Errorf("bundle: %w", err)
		}
		fresh = true
	}
	if fresh {
		err = w.remember(r, m.Blobs, m.Files)
	}
	return r, err == nil, err
}

func (m memory) holds() bool {
	for p, want := range m.Stamps {
		if got, err := stampAt(p); err != nil || got != want {
			return false
		}
	}
	return len(m.Stamps) > 0
}

// remember records what was written.
func (w *writing) remember(r manifest.Release, blobs []lain, files []string) error {
	key, ok, err := w.key()
	if !ok || err != nil {
		return err
	}
	where, err := w.where()
	if err != nil {
		return err
	}
	m := memory{Key: key, Index: r.Index, Parts: r.Parts, Parity: r.Parity, Stamps: map[string]stamp{}, Blobs: blobs, Files: files}
	err = w.each(func(dir string) error {
		return filepath.WalkDir(filepath.Join(dir, topDir), func(p string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			abs, err := filepath.Abs(p)
			if err != nil {
				return err
			}
			m.Stamps[abs], err = stampAt(p)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return w.cache.put("media", where, m)
}

// kept lists the blobs that lie on the media and nowhere else.
func (w *writing) kept() (out []lain, files []string, err error) {
	if len(w.recipients) > 0 || w.Since != nil {
		return nil, nil, nil
	}
	for _, x := range w.blobs {
		_, local := w.pool.get(x.Digest)
		_, made := w.pool.fresh(x.Digest)
		if _, err := w.pool.store.Stat(x.Digest); err != nil && !local && !made {
			out = append(out, lies(x))
		}
	}
	for i := range w.lens {
		abs, err := filepath.Abs(w.file(i, topDir, partsDir, manifest.PartName(i+1)))
		if err != nil {
			return nil, nil, err
		}
		files = append(files, abs)
	}
	return out, files, nil
}
