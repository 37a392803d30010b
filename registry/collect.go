package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
)

// CollectOptions say what a collection may take.
type CollectOptions struct {
	// Roots stay, with all that they refer to: the items of every slot. What
	// index.json names stays anyway.
	Roots []v1.Descriptor
	// Grace keeps what is younger than that: blobs that a client has pushed and
	// not yet named in a manifest, uploads that are not finished, and, in the
	// store, what a load has not got to naming.
	Grace time.Duration
	// Untagged takes pushed manifests away that no tag reaches and that are
	// about nothing that one reaches.
	Untagged bool
	DryRun   bool

	keepNames bool // a test's: take bytes only
}

// Collected says what went, or would.
type Collected struct {
	content.GCReport
	Blobs     int // names of blobs that were pushed and never used
	Manifests int // names of untagged manifests
}

// Collect takes away what nobody needs: names of blobs that no manifest of
// their repository lists, untagged manifests if so asked, and then the bytes
// that no slot, no release, no repository and no upload needs. It may run
// beside a registry, whose pushes wait meanwhile; while a bundle is loaded it
// refuses (content.ErrBusy). What it keeps, it keeps whole; when it can't read
// a manifest, it deletes nothing.
func Collect(ctx context.Context, store *content.Store, o CollectOptions) (Collected, error) {
	g := &collection{
		call: call{server: &server{source: storeSource{store}, store: store, shelf: shelf{filepath.Join(store.Dir(), shelfDir)}}},
		o:    o, before: time.Now().Add(-o.Grace),
	}
	if _, err := os.Stat(g.shelf.dir); err == nil { // something was pushed once
		// From here on nothing new gets a name, also of what is in the store.
		release, err := g.shelf.flock(".collect", unix.LOCK_EX)
		if err != nil {
			return g.out, err
		}
		defer release()
		if err := g.names(ctx); err != nil {
			return g.out, err
		}
	}
	roots, err := g.roots()
	if err != nil {
		return g.out, err
	}
	g.out.GCReport, err = store.GC(ctx, content.GCOptions{Roots: append(roots, o.Roots...), Grace: o.Grace, DryRun: o.DryRun})
	return g.out, err
}

// collection walks over the repositories.
type collection struct {
	call
	o      CollectOptions
	before time.Time
	out    Collected
	gone   map[string]bool // files that a dry run left
}

// names drops names, repository by repository.
func (g *collection) names(ctx context.Context) error {
	unlock, err := g.shelf.lock()
	if err != nil {
		return err
	}
	defer unlock()
	g.gone = map[string]bool{}
	if g.o.keepNames {
		return nil
	}
	repos, err := g.shelf.repos()
	for _, n := range repos {
		if err := errors.Join(err, ctx.Err(), g.tidy(n)); err != nil {
			return err
		}
	}
	return err
}

// tidy is one repository's turn.
func (g *collection) tidy(name string) error {
	g.name = name
	docs := map[v1.Hash]*document{}
	all := func(v1.Hash, entry) bool { return true }
	if err := g.documents(all, func(h v1.Hash, d *document) error { docs[h] = d; return nil }); err != nil {
		return err
	}
	if g.o.Untagged {
		if err := g.untagged(docs); err != nil {
			return err
		}
	}
	used := map[v1.Hash]bool{}
	for _, d := range docs {
		for _, p := range d.parts {
			used[p.Digest] = true
		}
	}
	hs, err := g.shelf.digests(g.shelf.path(name, blobsIn))
	for _, h := range hs {
		if p := g.shelf.path(name, blobsIn, fileOf(h)); !used[h] && g.old(p) {
			g.out.Blobs++
			err = errors.Join(err, g.forget(p))
		}
	}
	if err != nil || g.o.DryRun {
		return err
	}
	return g.prune(name)
}

// untagged drops the manifests that no tag reaches, from docs, too.
func (g *collection) untagged(docs map[v1.Hash]*document) error {
	r := reach{docs: docs, seen: map[v1.Hash]bool{}}
	lists, err := g.tagged(&r)
	if err != nil {
		return err
	}
	r.about(lists)
	for tag, h := range lists { // lists of referrers to what is no more
		if p := g.shelf.path(g.name, tagsIn, tag); !r.seen[h] && g.old(p) {
			if err := g.forget(p); err != nil {
				return err
			}
		}
	}
	for h, d := range docs {
		p := g.shelf.path(g.name, manifestsIn, fileOf(h))
		if r.seen[h] || !g.old(p) {
			continue
		}
		g.out.Manifests++
		if err := g.forget(p); err != nil {
			return err
		}
		if d.subject != nil {
			if err := g.forget(g.shelf.path(g.name, subjectsIn, fileOf(d.subject.Digest), fileOf(h))); err != nil {
				return err
			}
		}
		delete(docs, h)
	}
	return nil
}

// tagged reaches from every tag, except from those of lists of referrers,
// which it returns.
func (g *collection) tagged(r *reach) (lists map[string]v1.Hash, err error) {
	lists = map[string]v1.Hash{}
	tags, err := g.shelf.list(g.shelf.path(g.name, tagsIn))
	for _, t := range tags {
		h, ok, terr := g.shelf.tag(g.name, t)
		switch {
		case terr != nil:
			return nil, terr
		case ok && listTag.MatchString(t):
			lists[t] = h
		case ok:
			r.from(h)
		}
	}
	return lists, err
}

// reach is what can be reached in a repository.
type reach struct {
	docs map[v1.Hash]*document
	seen map[v1.Hash]bool
}

// from reaches h and what it lists.
func (r *reach) from(h v1.Hash) {
	d := r.docs[h]
	if d == nil || r.seen[h] {
		return
	}
	r.seen[h] = true
	for _, p := range d.lower {
		r.from(p.Digest)
	}
}

// about reaches what is about something that was reached, until there is no
// more: by its subject, or by the name of the list that it is.
func (r *reach) about(lists map[string]v1.Hash) {
	for n := -1; n != len(r.seen); {
		n = len(r.seen)
		for h, d := range r.docs {
			if d.subject != nil && r.seen[d.subject.Digest] {
				r.from(h)
			}
		}
		for h := range r.seen {
			if l, ok := lists[h.Algorithm+"-"+h.Hex[:64]]; ok {
				r.from(l)
			}
		}
	}
}

func (g *collection) old(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.ModTime().Before(g.before)
}

func (g *collection) forget(path string) error {
	if g.o.DryRun {
		g.gone[path] = true
		return nil
	}
	return g.shelf.drop(path)
}

// prune removes folders that have become empty, up to repos/.
func (g *collection) prune(name string) error {
	subjects, err := g.shelf.list(g.shelf.path(name, subjectsIn))
	if err != nil {
		return err
	}
	dirs := []string{blobsIn, manifestsIn, tagsIn}
	for _, s := range subjects {
		dirs = append(dirs, filepath.Join(subjectsIn, s))
	}
	for _, d := range append(dirs, subjectsIn) {
		removeEmpty(g.shelf.path(name, d))
	}
	for n := name; n != "."; n = filepath.Dir(n) {
		removeEmpty(g.shelf.path(n))
	}
	return durable.SyncDir(filepath.Join(g.shelf.dir, "repos"))
}

// removeEmpty leaves what isn't empty, or isn't there.
func removeEmpty(dir string) { _ = os.Remove(dir) }

// roots are what the repositories show. A manifest's parts are named one by
// one, too, as one may be known by a digest that the store has not.
func (g *collection) roots() (out []v1.Descriptor, err error) {
	repos, err := g.shelf.repos()
	for _, n := range repos {
		for _, k := range []string{manifestsIn, blobsIn} {
			hs, herr := g.shelf.digests(g.shelf.path(n, k))
			err = errors.Join(err, herr)
			for _, h := range hs {
				e, ok, eerr := g.shelf.entry(n, k, h)
				if err = errors.Join(err, eerr); ok && !g.gone[g.shelf.path(n, k, fileOf(h))] {
					out = append(out, v1.Descriptor{MediaType: types.MediaType(e.Type), Digest: e.At, Size: e.Size})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	return out, err
}
