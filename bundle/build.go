package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// The names on the media.
const (
	topDir    = "clawbox"
	noteFile  = "release.note"
	indexFile = "index.json"
	partsDir  = "parts"

	newDir = ".clawbox.new" // being built
	oldDir = ".clawbox.old" // being replaced
)

const (
	// DefaultPartSize keeps a part below FAT32's limit of 4 GiB - 1.
	DefaultPartSize = 4<<30 - 64<<10
	// MinPartSize is for tests and small media.
	MinPartSize = 1 << 20

	fetchers = 3 // items fetched at a time
)

// BuildOptions says what to build from what.
type BuildOptions struct {
	Recipe string // path
	Out    string // directory, created when absent; the bundle is Out/clawbox

	// Store is the work store that keeps pulled blobs, so that an interrupted
	// build goes on. Default: clawbox/store in the user's cache directory.
	Store string
	// Lock is the lock's path. Default: bundle.lock beside the recipe.
	Lock string
	// UpdateLock resolves everything anew and writes the lock.
	UpdateLock bool

	Signers  []manifest.Signer // at least one
	PartSize int64             // bytes; 0 is DefaultPartSize
	Progress Progress          // nil: quiet
}

// Build makes a bundle and returns its release. It takes what the recipe
// names, as the lock pins it, into the work store; then writes everything into
// Out/.clawbox.new, release.note last, and puts that in the place of
// Out/clawbox. Same lock, same keys: same bytes. An error leaves the bundle
// that was there.
func Build(ctx context.Context, o BuildOptions) (manifest.Release, error) {
	b, err := newBuild(o)
	if err != nil {
		return manifest.Release{}, err
	}
	if err := b.fetch(ctx); err != nil {
		return manifest.Release{}, err
	}
	if err := b.saveLock(); err != nil {
		return manifest.Release{}, err
	}
	return b.write(ctx)
}

// build is one run of Build.
type build struct {
	BuildOptions
	recipe Recipe
	lock   *Lock // nil: none yet
	pool   *pool
	items  []fetched // as recipe.Items
}

func newBuild(o BuildOptions) (*build, error) {
	if len(o.Signers) == 0 {
		return nil, errors.New("bundle: no signing key: make one with clawbox key generate and name it with --key")
	}
	if o.PartSize == 0 {
		o.PartSize = DefaultPartSize
	}
	if o.PartSize < MinPartSize || o.PartSize > manifest.MaxPart {
		return nil, fmt.Errorf("bundle: part size %d, want %d to %d bytes", o.PartSize, MinPartSize, int64(manifest.MaxPart))
	}
	if o.Out == "" {
		return nil, errors.New("bundle: no directory to write to: name one with -o")
	}
	o.Progress = orQuiet(o.Progress)
	r, err := LoadRecipe(o.Recipe)
	if err != nil {
		return nil, err
	}
	b := &build{BuildOptions: o, recipe: r, items: make([]fetched, len(r.Items))}
	b.Lock = o.lockPath(r)
	if !o.UpdateLock {
		if b.lock, err = loadLock(b.Lock); err != nil {
			return nil, err
		}
	}
	s, err := openStore(o.Store)
	if err != nil {
		return nil, err
	}
	b.pool = &pool{store: s, local: map[v1.Hash]localBlob{}}
	return b, nil
}

func openStore(dir string) (*content.Store, error) {
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("bundle: no work store: %w: name one with --store", err)
		}
		dir = filepath.Join(cache, "clawbox", "store")
	}
	return content.Open(dir)
}

// fetch brings every item into the pool.
func (b *build) fetch(ctx context.Context) error {
	var pins []*LockItem
	for _, it := range b.recipe.Items { // all pins first: a stale lock is found before hours of pulling
		p, err := b.lock.find(b.Lock, it)
		if err != nil {
			return err
		}
		pins = append(pins, p)
	}
	if b.lock != nil && len(b.lock.Items) != len(pins) {
		return fmt.Errorf("%s pins %d items, the recipe has %d: build with --update-lock", b.Lock, len(b.lock.Items), len(pins))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for i, it := range b.recipe.Items {
		g.Go(func() (err error) {
			j := &job{recipe: b.recipe, item: it, pin: pins[i], lockPath: b.Lock, pool: b.pool, progress: b.Progress}
			b.items[i], err = j.fetch(ctx)
			return err
		})
	}
	return g.Wait()
}

// saveLock writes a lock where there was none or a new one was asked for.
func (b *build) saveLock() error {
	if b.lock != nil {
		return nil
	}
	t, err := created(b.recipe, nil)
	if err != nil {
		return err
	}
	b.lock = &Lock{APIVersion: apiVersion, Kind: "Lock", Created: t.Format("2006-01-02T15:04:05Z")}
	for i, it := range b.recipe.Items {
		b.lock.Items = append(b.lock.Items, pin(it, b.items[i]))
	}
	return b.lock.save(b.Lock)
}

// entry is a blob that goes into the parts, and the first item that wants it.
type entry struct {
	digest v1.Hash
	size   int64
	item   string
}

// plan orders the blobs as an installation needs them: by kind, then as in the
// recipe, manifests before what they name, each blob once. It returns the
// release's items, in the recipe's order.
func (b *build) plan() (blobs []entry, items []manifest.Item, err error) {
	order := make([]int, len(b.items))
	for i := range order {
		order[i] = i
	}
	kind := func(i int) int { return manifest.Kinds[b.recipe.Items[i].Kind].Order }
	slices.SortStableFunc(order, func(x, y int) int { return kind(x) - kind(y) })
	seen := map[v1.Hash]int64{}
	items = make([]manifest.Item, len(b.items))
	for _, i := range order {
		it, f := b.recipe.Items[i], b.items[i]
		own := map[v1.Hash]bool{}
		var total int64
		err := walk(f.root, b.pool.manifest, func(d v1.Descriptor) error {
			if n, ok := seen[d.Digest]; ok && n != d.Size {
				return fmt.Errorf("item %s: blob %s is said to have %d and %d bytes", it.Name, d.Digest, n, d.Size)
			} else if !ok {
				blobs = append(blobs, entry{d.Digest, d.Size, it.Name})
			}
			if !own[d.Digest] {
				total += d.Size
			}
			seen[d.Digest], own[d.Digest] = d.Size, true
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		items[i] = manifest.Item{
			Name: it.Name, Kind: it.Kind, Ref: it.Ref, Descriptor: f.root, Platforms: f.platforms, Licence: it.Licence,
			Redistributable: it.Redistributable, Path: it.Path, Mode: it.Mode, TotalSize: total,
		}
	}
	return blobs, items, nil
}

// write makes the parts, the index and the note, and swaps them in.
func (b *build) write(ctx context.Context) (r manifest.Release, err error) {
	blobs, items, err := b.plan()
	if err != nil {
		return r, err
	}
	made := missing(b.Out)
	if err := durable.MkdirAll(b.Out, 0o755); err != nil {
		return r, errors.Join(fmt.Errorf("bundle: %w", err), removeEmpty(made))
	}
	unlock, err := lockOut(b.Out)
	if err != nil {
		return r, err
	}
	defer unlock()
	if r, err = b.replace(ctx, blobs, items); err != nil {
		err = errors.Join(err, removeEmpty(made))
	}
	return r, err
}

// replace puts a new bundle into Out, which is this build's alone.
func (b *build) replace(ctx context.Context, blobs []entry, items []manifest.Item) (none manifest.Release, err error) {
	if err := b.clear(); err != nil {
		return none, err
	}
	if err := b.room(blobs); err != nil {
		return none, err
	}
	dir := filepath.Join(b.Out, newDir)
	note, err := b.fill(ctx, dir, blobs, items)
	if err != nil {
		return none, errors.Join(err, os.RemoveAll(dir))
	}
	if err := swap(b.Out); err != nil {
		return none, fmt.Errorf("bundle: %w: the new bundle is complete in %s", err, dir)
	}
	trust, err := manifest.NewTrust(1, b.Signers[0].Key())
	if err != nil {
		return none, err
	}
	r, _, err := trust.Open(note)
	return r, err
}

// clear removes what an interrupted build left in Out. When it was cut off
// between the two renames of swap, the old bundle is put back.
func (b *build) clear() error {
	old, cur := filepath.Join(b.Out, oldDir), filepath.Join(b.Out, topDir)
	if _, err := os.Lstat(cur); errors.Is(err, fs.ErrNotExist) {
		if err := durable.Rename(old, cur); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("bundle: %w", err)
		}
	}
	for _, n := range []string{newDir, oldDir} {
		if err := os.RemoveAll(filepath.Join(b.Out, n)); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
	}
	return nil
}

// room checks the space before the first byte is written.
func (b *build) room(blobs []entry) error {
	want := int64(manifest.MaxNote) // the two small files, generously
	for _, e := range blobs {
		want += e.size + e.size/manifest.ChunkSize*70
	}
	have, err := free(b.Out)
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if have < want {
		hint := ""
		if _, err := os.Lstat(filepath.Join(b.Out, topDir)); err == nil {
			hint = ", or remove the old bundle in it first (it is kept until the new one is complete)"
		}
		return fmt.Errorf("bundle: %s has %s free, the bundle needs %s: free some, or choose another directory%s", b.Out, Size(have), Size(want), hint)
	}
	return nil
}

// free returns the bytes that may be written below dir.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// fill writes a whole bundle into dir and returns its note.
func (b *build) fill(ctx context.Context, dir string, blobs []entry, items []manifest.Item) ([]byte, error) {
	if err := durable.MkdirAll(filepath.Join(dir, partsDir), 0o755); err != nil {
		return nil, err
	}
	index, parts, err := b.writeParts(ctx, filepath.Join(dir, partsDir), blobs)
	if err != nil {
		return nil, err
	}
	x, err := manifest.EncodeIndex(index)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(dir, indexFile), x, 0o644); err != nil {
		return nil, err
	}
	t, err := created(b.recipe, b.lock)
	if err != nil {
		return nil, err
	}
	note, err := manifest.Sign(manifest.Release{
		Format: manifest.ReleaseFormat, Name: b.recipe.Metadata.Name, Version: b.recipe.Metadata.Version,
		Sequence: b.recipe.Sequence, Created: t, ChunkSize: manifest.ChunkSize,
		Index: manifest.File{Size: int64(len(x)), SHA256: sha256.Sum256(x)}, Parts: parts, Items: items,
	}, b.Signers...)
	if err != nil {
		return nil, err
	}
	if len(note) > manifest.MaxNote {
		return nil, fmt.Errorf("bundle: release.note of %d bytes, want at most %d: make several bundles", len(note), manifest.MaxNote)
	}
	return note, durable.WriteFile(filepath.Join(dir, noteFile), note, 0o644)
}

// swap puts the new bundle in the place of the old one: at once where the file
// system can exchange two names, otherwise with a moment in which there is no
// bundle. At no time are parts of both under one name.
func swap(out string) error {
	from, to, old := filepath.Join(out, newDir), filepath.Join(out, topDir), filepath.Join(out, oldDir)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		if err := durable.SyncDir(out); err != nil {
			return err
		}
		return os.RemoveAll(from)
	case errors.Is(err, unix.ENOENT):
		return durable.Rename(from, to)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS): // FAT and exFAT say EINVAL
		return &os.LinkError{Op: "exchange", Old: from, New: to, Err: err}
	}
	if err := durable.Rename(to, old); err != nil {
		return err
	}
	if err := durable.Rename(from, to); err != nil {
		return errors.Join(err, durable.Rename(old, to))
	}
	return os.RemoveAll(old)
}

// itemOf says which item wants a blob, for messages.
func itemOf(r manifest.Release, read func(v1.Descriptor) ([]byte, error), h v1.Hash) string {
	var names []string
	for _, it := range r.Items {
		found := false
		err := walk(it.Descriptor, read, func(d v1.Descriptor) error {
			found = found || d.Digest == h
			return nil
		})
		if found || err != nil && it.Descriptor.Digest == h {
			names = append(names, it.Name)
		}
	}
	return strings.Join(names, ", ")
}
