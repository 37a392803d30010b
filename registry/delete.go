package registry

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// documents reads those of the repository's pushed manifests that are wanted,
// one by one.
func (c *call) documents(want func(v1.Hash, entry) bool, each func(v1.Hash, *document) error) error {
	hs, err := c.shelf.digests(c.shelf.path(c.name, manifestsIn))
	if err != nil {
		return err
	}
	for _, h := range hs {
		e, ok, err := c.shelf.entry(c.name, manifestsIn, h)
		if err != nil {
			return err
		}
		if !ok || !want(h, e) {
			continue
		}
		m, err := load(c.source, v1.Descriptor{MediaType: types.MediaType(e.Type), Digest: e.At, Size: e.Size})
		if err != nil {
			return fmt.Errorf("repository %s: %w: delete that manifest, or push it again", c.name, err)
		}
		if err := each(h, m.document); err != nil {
			return err
		}
	}
	return nil
}

// listTag is distribution-spec, "Referrers tag schema": the tag under which
// clients that don't know the referrers' API keep a list of them, with the
// subject's algorithm and the first 64 digits.
var listTag = regexp.MustCompile(`^(sha256|sha512)-[0-9a-f]{64}$`)

// lists are the indexes that such tags name.
func (c *call) lists() (map[v1.Hash]bool, error) {
	tags, err := c.shelf.list(c.shelf.path(c.name, tagsIn))
	out := map[v1.Hash]bool{}
	for _, t := range tags {
		if !listTag.MatchString(t) {
			continue
		}
		h, _, terr := c.shelf.tag(c.name, t)
		if terr != nil {
			return nil, terr
		}
		out[h] = true
	}
	return out, err
}

// dropList forgets a list of referrers that another has replaced, unless it
// has a tag of another kind: it would seem to need what was struck from it.
func (c *call) dropList(h v1.Hash) error {
	tags, err := c.shelf.list(c.shelf.path(c.name, tagsIn))
	if err != nil {
		return err
	}
	for _, t := range tags {
		if th, _, err := c.shelf.tag(c.name, t); err != nil || th == h {
			return err
		}
	}
	return c.shelf.drop(c.shelf.path(c.name, manifestsIn, fileOf(h)))
}

// unneeded refuses when another pushed manifest lists h. Only indexes list
// manifests. A list of referrers doesn't need what it lists: such clients
// delete a manifest first and strike it from the list then.
func (c *call) unneeded(h v1.Hash, manifest bool) error {
	lists, err := c.lists()
	if err != nil {
		return err
	}
	want := func(by v1.Hash, e entry) bool {
		return by != h && !lists[by] && (!manifest || forms[types.MediaType(e.Type)])
	}
	return c.documents(want, func(by v1.Hash, d *document) error {
		if slices.ContainsFunc(slices.Concat(d.parts, d.lower), func(p v1.Descriptor) bool { return p.Digest == h }) {
			return refuse(http.StatusMethodNotAllowed, codeDenied, "manifest %s needs %s: delete that first", by, h)
		}
		return nil
	})
}

func (c *call) deleteManifest() error {
	unlock, err := c.shelf.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if !c.exists() {
		return refuse(http.StatusNotFound, codeNoName, "no repository %s", c.name)
	}
	if !strings.Contains(c.ref, ":") {
		return c.deleteTag()
	}
	h, err := parseDigest(c.ref)
	if err != nil {
		return err
	}
	if c.repo != nil && c.repo.manifests[h] != nil {
		return refuse(http.StatusMethodNotAllowed, codeDenied, "%s belongs to an installed release; it goes with that", h)
	}
	e, ok, err := c.shelf.entry(c.name, manifestsIn, h)
	if err != nil {
		return err
	}
	if !ok {
		return refuse(http.StatusNotFound, codeNoManifest, "no manifest %s here", h)
	}
	if err := c.unneeded(h, true); err != nil {
		return err
	}
	if err := c.record(Delete, c.ref, h); err != nil {
		return err
	}
	return c.dropManifest(h, e)
}

func (c *call) deleteTag() error {
	if err := c.ours(c.ref); err != nil {
		return err
	}
	h, ok, err := c.resolve(c.ref)
	if err != nil {
		return err
	}
	if !ok {
		return refuse(http.StatusNotFound, codeNoManifest, "no tag %.140q here", c.ref)
	}
	if err := c.record(Delete, c.ref, h); err != nil {
		return err
	}
	if err := c.shelf.drop(c.shelf.path(c.name, tagsIn, c.ref)); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// dropManifest takes the names away in the order in which show gave them,
// backwards.
func (c *call) dropManifest(h v1.Hash, e entry) error {
	tags, err := c.shelf.list(c.shelf.path(c.name, tagsIn))
	if err != nil {
		return err
	}
	for _, t := range tags {
		if th, _, err := c.shelf.tag(c.name, t); err != nil {
			return err
		} else if th != h {
			continue
		}
		if err := c.shelf.drop(c.shelf.path(c.name, tagsIn, t)); err != nil {
			return err
		}
	}
	if err := c.shelf.drop(c.shelf.path(c.name, manifestsIn, fileOf(h))); err != nil {
		return err
	}
	m, err := load(c.source, v1.Descriptor{MediaType: types.MediaType(e.Type), Digest: e.At, Size: e.Size})
	if err == nil && m.subject != nil { // one that can't be read is not shown any more either
		if err := c.shelf.drop(c.shelf.path(c.name, subjectsIn, fileOf(m.subject.Digest), fileOf(h))); err != nil {
			return err
		}
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (c *call) deleteBlob() error {
	h, err := parseDigest(c.ref)
	if err != nil {
		return err
	}
	unlock, err := c.shelf.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if c.repo != nil {
		if _, theirs := c.repo.blobs[h]; theirs {
			return refuse(http.StatusMethodNotAllowed, codeDenied, "%s belongs to an installed release; it goes with that", h)
		}
	}
	_, ok, err := c.shelf.entry(c.name, blobsIn, h)
	if err != nil {
		return err
	}
	if !ok {
		return refuse(http.StatusNotFound, codeBlob, "no blob %s here", h)
	}
	if err := c.unneeded(h, false); err != nil {
		return err
	}
	if err := c.record(Delete, c.ref, h); err != nil {
		return err
	}
	if err := c.shelf.drop(c.shelf.path(c.name, blobsIn, fileOf(h))); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}
