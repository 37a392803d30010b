package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// view is what the store's names reach, computed once per state of index.json.
type view struct {
	repos map[string]*repo
	holes bool // some manifest was missing or damaged; it may be there later
}

// repo is one repository. Its maps are never changed once the view is done.
type repo struct {
	tags      map[string]v1.Hash
	manifests map[v1.Hash]*manifest
	blobs     map[v1.Hash]int64 // sizes, as the manifests state them
	referrers map[v1.Hash][]v1.Descriptor
}

// manifest is a document that is in the store as desc.
type manifest struct {
	desc v1.Descriptor
	*document
}

// views keeps the newest view.
type views struct {
	source Source

	mu    sync.Mutex // guards what follows
	cur   *view
	state string
	at    time.Time
	known map[v1.Hash]*manifest // what the newest view has read
}

// get returns the view of the present names. A view with holes is looked
// at again after a second: its missing manifests come without a change there.
func (vs *views) get() (*view, error) {
	state, err := vs.source.State()
	if err != nil {
		return nil, err
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.cur != nil && state == vs.state && (!vs.cur.holes || time.Since(vs.at) < time.Second) {
		return vs.cur, nil
	}
	l := &looker{source: vs.source, old: vs.known, seen: map[v1.Hash]*manifest{}}
	v, err := l.look()
	if err != nil {
		return nil, err
	}
	vs.cur, vs.state, vs.at, vs.known = v, state, time.Now(), l.seen
	return v, nil
}

// look builds the view of src.
func look(src Source) (*view, error) {
	return (&looker{source: src, seen: map[v1.Hash]*manifest{}}).look()
}

func (l *looker) look() (*view, error) {
	refs, err := l.source.Refs()
	if err != nil {
		return nil, err
	}
	v := &view{repos: map[string]*repo{}}
	l.view = v
	var loose []v1.Descriptor
	for _, d := range refs {
		ref := d.Annotations[content.RefName]
		name, tag, ok := split(ref)
		switch {
		case ref == "":
			loose = append(loose, d)
		case ok:
			l.add(v.repo(name), d, 0)
			if tag != "" {
				v.repos[name].tags[tag] = d.Digest
			}
		}
	}
	l.attach(loose)
	for _, r := range v.repos {
		r.refer()
	}
	return v, nil
}

// split turns a name in the store into repository and tag.
func split(ref string) (name, tag string, ok bool) {
	if name, digest, at := strings.Cut(ref, "@"); at {
		name, _, _ = cutTag(name)
		_, err := parseDigest(digest)
		return name, "", err == nil && goodName(name)
	}
	name, tag, found := cutTag(ref)
	if !found {
		tag = "latest"
	}
	return name, tag, goodName(name) && tagForm.MatchString(tag)
}

func cutTag(s string) (name, tag string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < strings.LastIndexByte(s, '/') || i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func (v *view) repo(name string) *repo {
	r := v.repos[name]
	if r == nil {
		r = &repo{map[string]v1.Hash{}, map[v1.Hash]*manifest{}, map[v1.Hash]int64{}, map[v1.Hash][]v1.Descriptor{}}
		v.repos[name] = r
	}
	return r
}

// maxDepth is how deep indexes may hold indexes.
const maxDepth = 8

type looker struct {
	source Source
	view   *view
	old    map[v1.Hash]*manifest // what an earlier look has read
	seen   map[v1.Hash]*manifest // nil: couldn't be read
}

// read returns manifest d, or nil when it can't be read. What a digest names
// never changes, so each is parsed once; damage that comes later is found
// when it is served.
func (l *looker) read(d v1.Descriptor) *manifest {
	if m, known := l.seen[d.Digest]; known {
		return m
	}
	m := l.old[d.Digest]
	if m == nil {
		m, _ = load(l.source, d) // nil is a hole
	}
	l.seen[d.Digest] = m
	return m
}

// add puts the manifest d and everything under it into r. What can't be read
// leaves a hole there and doesn't take the rest of the store away.
func (l *looker) add(r *repo, d v1.Descriptor, depth int) {
	if r.manifests[d.Digest] != nil || depth > maxDepth {
		return
	}
	m := l.read(d)
	if m == nil {
		l.view.holes = true
		return
	}
	r.manifests[d.Digest] = m
	r.blobs[d.Digest] = d.Size
	for _, p := range m.parts {
		r.blobs[p.Digest] = p.Size
	}
	for _, x := range m.lower {
		l.add(r, x, depth+1)
	}
}

// attach gives manifests without a name to the repositories that show their
// subject. One may be about another, so it repeats until nothing changes.
func (l *looker) attach(loose []v1.Descriptor) {
	for again := true; again; {
		again = false
		for _, d := range loose {
			m := l.read(d)
			if m == nil || m.subject == nil {
				continue
			}
			for _, r := range l.view.repos {
				if r.manifests[m.subject.Digest] != nil && r.manifests[d.Digest] == nil {
					l.add(r, d, 0)
					again = true
				}
			}
		}
	}
}

// refer sorts the repository's manifests by their subjects.
func (r *repo) refer() {
	for _, m := range r.manifests {
		if m.subject == nil {
			continue
		}
		r.referrers[m.subject.Digest] = append(r.referrers[m.subject.Digest], m.referrer())
	}
	for _, ds := range r.referrers {
		slices.SortFunc(ds, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	}
}

// readManifest returns the bytes of d, of which it has checked the size and
// the digest.
func readManifest(src Source, d v1.Descriptor) ([]byte, error) {
	if d.Size < 0 || d.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s has %d bytes, want at most %d", d.Digest, d.Size, maxManifest)
	}
	f, err := src.Open(context.Background(), d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, d.Size+1))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); int64(len(b)) != d.Size || hex.EncodeToString(sum[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("manifest %s is damaged (%d bytes of %d, digest sha256:%x): load the bundle again", d.Digest, len(b), d.Size, sum)
	}
	return b, nil
}

// load reads the manifest d.
func load(src Source, d v1.Descriptor) (*manifest, error) {
	b, err := readManifest(src, d)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(b, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	d.Annotations, d.Platform = nil, nil
	return &manifest{d, doc}, nil
}

// referrer is m as its subject's list shows it.
func (m *manifest) referrer() v1.Descriptor {
	return v1.Descriptor{MediaType: m.desc.MediaType, Digest: m.desc.Digest, Size: m.desc.Size, ArtifactType: m.kind, Annotations: m.notes}
}
