package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
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

	// Store is the work store that keeps pulled blobs, but for layers that went
	// straight to the media; what lies beside it tells where. So an interrupted
	// build goes on. Default: clawbox/store in the user's cache directory.
	Store string
	// Lock is the lock's path. Default: bundle.lock beside the recipe.
	Lock string
	// UpdateLock resolves everything anew and writes the lock.
	UpdateLock bool

	Signers  []manifest.Signer // at least one
	PartSize int64             // bytes; 0 is DefaultPartSize
	Progress Progress          // nil: quiet

	OutSize int64    // bytes that may be used in Out; 0: what is free
	More    []Output // further directories, which take the parts that Out has no room for
	// Roots are the notes of the chain of roots, from version 1. The last one's
	// release role is then the one whose threshold must sign.
	Roots      [][]byte
	Parity     int      // parity parts: so many lost or damaged parts can be rebuilt
	Recipients []string // whom to encrypt to: see ParseRecipients
	Since      *Since   // leave out what this release has
	Rehash     bool     // read and write everything anew, though nothing seems to have changed
	Consent    Consent  // recorded in the lock
}

// Build makes a bundle and returns its release. It takes what the recipe
// names, as the lock pins it, into the work store, and layers straight to their
// places in Out/.clawbox.new; then writes all else there, release.note last, and
// puts that in the place of Out/clawbox. Same lock, same keys: same bytes. An
// error leaves the bundle that was there.
func Build(ctx context.Context, o BuildOptions) (manifest.Release, error) {
	r, err := buildOnce(ctx, o, true)
	if errors.Is(err, errMoved) {
		r, err = buildOnce(ctx, o, false)
	}
	return r, err
}

// buildOnce is Build; early says whether layers and large files may be written
// before all is known that goes on the media.
func buildOnce(ctx context.Context, o BuildOptions, early bool) (none manifest.Release, err error) {
	b, err := newBuild(o)
	if err != nil {
		return none, err
	}
	b.pool.pullsLate = early && b.pullsLate()
	if err := b.fetch(ctx); err != nil {
		return none, err
	}
	r, err := b.finish(ctx)
	if b.early != nil && err != nil {
		err = errors.Join(err, b.leave(err))
	}
	if b.early != nil {
		err = errors.Join(err, b.early.close(err))
	}
	return r, err
}

// finish looks into everything, pulls what was left for later, and writes.
func (b *build) finish(ctx context.Context) (none manifest.Release, err error) {
	all, err := b.lookInto(ctx)
	if err != nil {
		return none, err
	}
	if err := b.pullLate(ctx); err != nil {
		return none, err
	}
	if len(b.pool.unread) > 0 {
		if err := b.again(ctx); err != nil {
			return none, errors.Join(err, b.drop())
		}
		if all, err = b.lookInto(ctx); err != nil {
			return none, err
		}
	}
	if err := b.refuseKeys(all); err != nil {
		return none, errors.Join(err, b.drop())
	}
	if err := b.saveLock(); err != nil {
		return none, err
	}
	return b.write(ctx)
}

// build is one run of Build.
type build struct {
	BuildOptions
	recipe     Recipe
	lock       *Lock // nil: none yet
	pool       *pool
	cache      *cache
	items      []fetched // as recipe.Items
	terms      []string  // sha256 of each item's terms, or ""
	accepted   []licence.Acceptance
	decided    bool // accepted has something new
	recipients []age.Recipient
	root       *manifest.Root // the last of Roots
	early      *early         // nil: no layer was left for later
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
	if b.recipients, err = ParseRecipients(o.Recipients...); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if b.root, err = lastRoot(o.Roots); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	b.Lock = o.lockPath(r)
	if o.UpdateLock {
		b.accepted = kept(b.Lock, r)
	} else if b.lock, err = loadLock(b.Lock); err != nil {
		return nil, err
	} else if b.lock != nil {
		b.accepted = b.lock.Acceptances
	}
	if err := b.settleTerms(); err != nil {
		return nil, err
	}
	s, err := openStore(o.Store)
	if err != nil {
		return nil, err
	}
	b.cache = &cache{dir: s.Dir() + ".cache", off: o.Rehash}
	b.pool = &pool{store: s, cache: b.cache, looks: newLooks(b.cache), local: map[v1.Hash]localBlob{}, late: map[v1.Hash]late{}, seen: map[string]hashed{}, unread: map[string]bool{}}
	b.pool.rememberMedia()
	return b, nil
}

// lastRoot checks a chain of roots as a host would, and returns its last one.
func lastRoot(notes [][]byte) (*manifest.Root, error) {
	if len(notes) == 0 {
		return nil, nil
	}
	t, err := manifest.TrustRoot(notes[0])
	if err != nil {
		return nil, err
	}
	if r, _, _ := t.Root(); r.Version != 1 {
		return nil, fmt.Errorf("the first root is version %d, want the whole chain from version 1", r.Version)
	}
	t, err = t.Follow(func(v int64) ([]byte, error) {
		if v > int64(len(notes)) {
			return nil, fs.ErrNotExist
		}
		return notes[v-1], nil
	})
	if err != nil {
		return nil, err
	}
	r, _, _ := t.Root()
	return &r, nil
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
	release, err := b.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for i, it := range b.recipe.Items {
		g.Go(func() (err error) {
			b.items[i], err = b.job(it, pins[i]).fetch(ctx)
			return err
		})
	}
	return g.Wait()
}

func (b *build) job(it Item, pin *LockItem) *job {
	return &job{recipe: b.recipe, item: it, pin: pin, lockPath: b.Lock, pool: b.pool, progress: b.Progress}
}

// turn waits until no other build or load fills the work store.
func (b *build) turn(ctx context.Context) (release func(), err error) {
	var task Task
	release, err = b.pool.store.Exclusive(ctx, func(h content.Holder) {
		task = b.Progress.Start("wait for "+h.String()+", which fills the work store", -1)
	})
	if task != nil {
		task.Done(err)
	}
	return release, err
}

// saveLock writes a lock where there was none, a new one was asked for, or
// something was decided.
func (b *build) saveLock() error {
	if b.lock != nil && !b.decided {
		return nil
	}
	if b.lock != nil {
		b.lock.Acceptances = b.accepted
		return b.lock.save(b.Lock)
	}
	t, err := created(b.recipe, nil)
	if err != nil {
		return err
	}
	b.lock = &Lock{APIVersion: apiVersion, Kind: "Lock", Created: t.Format("2006-01-02T15:04:05Z"), Acceptances: b.accepted}
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

// describe makes the release's items: the recipe's, in its order, then the
// lists of their software.
func (b *build) describe() ([]manifest.Item, error) {
	items := b.asked()
	more, err := b.boms(items)
	return append(items, more...), err
}

// asked are the recipe's items.
func (b *build) asked() (items []manifest.Item) {
	for i, it := range b.recipe.Items {
		f := b.items[i]
		items = append(items, manifest.Item{
			Name: it.Name, Kind: it.Kind, Ref: it.Ref, Descriptor: f.root, Platforms: f.platforms, Licence: it.Licence,
			Redistributable: it.Redistributable, Terms: b.terms[i], Accepted: b.acceptedFor(i), AllowedKeys: allowedKeys(it),
			Model: f.model, Path: it.Path, Mode: it.Mode,
		})
	}
	return items
}

// outs are the directories to write to.
func (b *build) outs() []Output { return append([]Output{{Dir: b.Out, Size: b.OutSize}}, b.More...) }

// plan orders the blobs as an installation needs them: by kind, then as in the
// release, manifests before what they name, each blob once. It sets the items'
// sizes.
func (b *build) plan(items []manifest.Item) (blobs []entry, err error) {
	order := make([]*manifest.Item, len(items))
	for i := range order {
		order[i] = &items[i]
	}
	slices.SortStableFunc(order, func(x, y *manifest.Item) int { return manifest.Kinds[x.Kind].Order - manifest.Kinds[y.Kind].Order })
	seen := map[v1.Hash]int64{}
	var total int64
	for _, it := range order {
		own := map[v1.Hash]bool{}
		it.TotalSize = 0
		err := walk(it.Descriptor, b.pool.manifest, func(d v1.Descriptor) error {
			if n, ok := seen[d.Digest]; ok && n != d.Size {
				return fmt.Errorf("item %s: blob %s is said to have %d and %d bytes", it.Name, d.Digest, n, d.Size)
			} else if !ok {
				blobs = append(blobs, entry{d.Digest, d.Size, it.Name})
				if total += d.Size; d.Size > manifest.MaxTotal || total > manifest.MaxTotal {
					return fmt.Errorf("item %s: more than %d bytes up to blob %s: make several bundles", it.Name, int64(manifest.MaxTotal), d.Digest)
				}
			}
			if !own[d.Digest] {
				it.TotalSize += d.Size
			}
			seen[d.Digest], own[d.Digest] = d.Size, true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return blobs, nil
}

// write makes the parts, the index and the note, and swaps them in.
func (b *build) write(ctx context.Context) (r manifest.Release, err error) {
	release, err := b.pool.store.Hold()
	if err != nil {
		return r, err
	}
	defer release()
	items, err := b.describe()
	if err != nil {
		return r, err
	}
	entries, err := b.plan(items)
	if err != nil {
		return r, err
	}
	w := &writing{build: b, entries: entries, items: items}
	for _, e := range entries {
		x := manifest.Blob{Digest: e.digest, Size: e.size}
		b.cache.sums(&x)
		w.blobs = append(w.blobs, x)
	}
	if err := b.against(ctx, w.blobs); err != nil {
		return r, err
	}
	if b.early != nil {
		w.outputs = b.early.outputs
		return w.run(ctx)
	}
	if w.outputs, err = openOutputs(b.outs()); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close(err)) }()
	return w.run(ctx)
}
