package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

// maxManifest is the size that the specification tells registries to accept.
const maxManifest = 4 << 20

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

// manifest is what the registry has to know of an index or a manifest.
type manifest struct {
	desc    v1.Descriptor
	parts   []v1.Descriptor // configuration and layers
	lower   []v1.Descriptor // an index's manifests
	subject *v1.Descriptor
	notes   map[string]string
	kind    string // artifact type
}

// views keeps the newest view.
type views struct {
	store *content.Store

	mu    sync.Mutex // guards what follows
	cur   *view
	index os.FileInfo
	at    time.Time
}

// get returns the view of the present index.json. A view with holes is looked
// at again after a second: its missing manifests come without a change there.
func (vs *views) get() (*view, error) {
	fi, err := os.Stat(filepath.Join(vs.store.Dir(), "index.json"))
	if err != nil {
		return nil, err
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	same := vs.index != nil && os.SameFile(fi, vs.index) && fi.ModTime().Equal(vs.index.ModTime()) && fi.Size() == vs.index.Size()
	if same && (!vs.cur.holes || time.Since(vs.at) < time.Second) {
		return vs.cur, nil
	}
	v, err := look(vs.store)
	if err != nil {
		return nil, err
	}
	vs.cur, vs.index, vs.at = v, fi, time.Now()
	return v, nil
}

// look builds the view of store.
func look(store *content.Store) (*view, error) {
	refs, err := store.Refs()
	if err != nil {
		return nil, err
	}
	v := &view{repos: map[string]*repo{}}
	l := &looker{store: store, view: v, seen: map[v1.Hash]*manifest{}}
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
	store *content.Store
	view  *view
	seen  map[v1.Hash]*manifest // nil: couldn't be read
}

// add puts the manifest d and everything under it into r. What can't be read
// leaves a hole there and doesn't take the rest of the store away.
func (l *looker) add(r *repo, d v1.Descriptor, depth int) {
	if r.manifests[d.Digest] != nil || depth > maxDepth {
		return
	}
	m, known := l.seen[d.Digest]
	if !known {
		var err error
		if m, err = load(l.store, d); err != nil {
			l.view.holes, m = true, nil
		}
		l.seen[d.Digest] = m
	}
	if m == nil {
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
			m, known := l.seen[d.Digest]
			if !known {
				m, _ = load(l.store, d) // unreadable: about nothing
				l.seen[d.Digest] = m
			}
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
		r.referrers[m.subject.Digest] = append(r.referrers[m.subject.Digest], v1.Descriptor{
			MediaType: m.desc.MediaType, Digest: m.desc.Digest, Size: m.desc.Size, ArtifactType: m.kind, Annotations: m.notes,
		})
	}
	for _, ds := range r.referrers {
		slices.SortFunc(ds, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	}
}

// readManifest returns the bytes of d, of which it has checked the size and
// the digest.
func readManifest(store *content.Store, d v1.Descriptor) ([]byte, error) {
	if d.Size < 0 || d.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s has %d bytes, want at most %d", d.Digest, d.Size, maxManifest)
	}
	f, err := store.Open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, d.Size+1))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); int64(len(b)) != d.Size || hex.EncodeToString(sum[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("manifest %s is damaged in the store (%d bytes of %d, digest sha256:%x): load the bundle again", d.Digest, len(b), d.Size, sum)
	}
	return b, nil
}

// load reads what manifest d holds.
func load(store *content.Store, d v1.Descriptor) (*manifest, error) {
	b, err := readManifest(store, d)
	if err != nil {
		return nil, err
	}
	var j struct {
		MediaType    types.MediaType   `json:"mediaType"`
		ArtifactType string            `json:"artifactType"`
		Config       *v1.Descriptor    `json:"config"`
		Layers       []v1.Descriptor   `json:"layers"`
		Manifests    []v1.Descriptor   `json:"manifests"`
		Subject      *v1.Descriptor    `json:"subject"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(b, &j); err != nil { // fields that we don't know are allowed by the specification
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if j.MediaType == "" {
		j.MediaType = d.MediaType
	}
	// A document that reads as both kinds is how CVE-2021-41190 tricks one
	// client into another image than the next.
	if j.MediaType != d.MediaType || j.Manifests != nil && (j.Layers != nil || j.Config != nil) {
		return nil, errors.New("manifest " + d.Digest.String() + ": its media type and its content don't agree")
	}
	d.Annotations, d.Platform = nil, nil
	m := &manifest{desc: d, parts: j.Layers, lower: j.Manifests, subject: j.Subject, notes: j.Annotations, kind: j.ArtifactType}
	if j.Config != nil {
		m.parts = append(slices.Clone(j.Layers), *j.Config)
		if m.kind == "" {
			m.kind = string(j.Config.MediaType) // distribution-spec, "Listing referrers"
		}
	}
	return m, nil
}
