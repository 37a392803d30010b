package registry

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxTags is how many tags one push may set; the specification wants 10.
const maxTags = 64

// hashers makes the sums of algorithms.
var hashers = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

func sumOf(alg string, b []byte) v1.Hash {
	h := hashers[alg]()
	h.Write(b)
	return v1.Hash{Algorithm: alg, Hex: hex.EncodeToString(h.Sum(nil))}
}

// pushed is a manifest on its way in.
type pushed struct {
	name v1.Hash // the digest that it was pushed by, or its sha256
	tags []string
	body []byte
	doc  *document
}

func (c *call) putManifest() error {
	p, err := c.readPush()
	if err != nil {
		return err
	}
	release, err := c.hold() // what it refers to must not be collected now
	if err != nil {
		return err
	}
	defer release()
	if err := c.renew(); err != nil {
		return err
	}
	if err := c.checkTags(p.tags); err != nil {
		return err
	}
	at := v1.Descriptor{MediaType: p.doc.mediaType, Digest: sumOf("sha256", p.body), Size: int64(len(p.body))}
	if err := c.check(p.doc); err != nil {
		return err // before the bytes are in the store
	}
	if err := c.ups.free(at.Size); err != nil {
		return err
	}
	if err := c.store.Put(c.r.Context(), at.Digest, at.Size, bytes.NewReader(p.body)); err != nil {
		return err
	}
	if err := c.show(p, at); err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.name+"/manifests/"+p.name.String())
	h.Set("Docker-Content-Digest", p.name.String())
	if p.doc.subject != nil {
		h.Set("OCI-Subject", p.doc.subject.Digest.String())
	}
	if p.name.String() == c.ref && len(p.tags) > 0 {
		h.Set("OCI-Tag", strings.Join(p.tags, ", "))
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// readPush reads and checks what can be checked without looking at the
// repository.
func (c *call) readPush() (*pushed, error) {
	p := &pushed{}
	alg := "sha256"
	if strings.Contains(c.ref, ":") {
		h, err := ownDigest(c.ref)
		if err != nil {
			return nil, err
		}
		p.tags, alg = slices.Compact(slices.Sorted(slices.Values(c.r.URL.Query()["tag"]))), h.Algorithm
	} else {
		p.tags = []string{c.ref}
	}
	if err := c.checkTags(p.tags); err != nil {
		return nil, err
	}
	var err error
	if p.body, err = io.ReadAll(http.MaxBytesReader(c.w, c.body(), maxManifest)); err != nil {
		if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
			return nil, refuse(http.StatusRequestEntityTooLarge, codeManifest, "the manifest has more than %d bytes", maxManifest)
		}
		return nil, refuse(http.StatusBadRequest, codeManifest, "the manifest did not come whole: %v", err)
	}
	p.name = sumOf(alg, p.body)
	if strings.Contains(c.ref, ":") && p.name.String() != c.ref {
		return nil, refuse(http.StatusBadRequest, codeDigest, "the manifest has digest %s, want %s", p.name, c.ref)
	}
	p.doc, err = c.parsePush(p.body)
	return p, err
}

func (c *call) checkTags(tags []string) error {
	if len(tags) > maxTags {
		return refuse(http.StatusRequestURITooLong, codeManifest, "%d tags at once, want %d at most", len(tags), maxTags)
	}
	for _, t := range tags {
		if !tagForm.MatchString(t) {
			return refuse(http.StatusBadRequest, codeManifest, "tag %.140q: want letters, digits and . _ -, 128 at most, not beginning with . or -", t)
		}
		if err := c.ours(t); err != nil {
			return err
		}
	}
	return nil
}

// ours refuses to move or delete a release's tag.
func (c *call) ours(tag string) error {
	if c.repo == nil {
		return nil
	}
	if _, theirs := c.repo.tags[tag]; theirs {
		return refuse(http.StatusMethodNotAllowed, codeDenied, "%s:%s belongs to an installed release, which a push can't change: choose another tag", c.name, tag)
	}
	return nil
}

// parsePush reads the manifest by its Content-Type, without parameters.
func (c *call) parsePush(b []byte) (*document, error) {
	ct, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	mt := types.MediaType(strings.ToLower(strings.TrimSpace(ct)))
	if mt == "" {
		var j struct {
			MediaType types.MediaType `json:"mediaType"`
		}
		_ = json.Unmarshal(b, &j) // parseDocument says what is wrong
		mt = j.MediaType
	}
	if _, ok := forms[mt]; !ok {
		return nil, refuse(http.StatusBadRequest, codeManifest, "media type %.80q: want an OCI or Docker (version 2) manifest or index", mt)
	}
	d, err := parseDocument(b, mt)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, codeManifest, "the manifest is not valid: %v", err)
	}
	return d, nil
}

// check says whether all that d needs is shown here, and is what d says.
func (c *call) check(d *document) error {
	for _, p := range d.parts {
		if elsewhere(p) {
			continue
		}
		e, ok, err := c.blob(c.view, c.name, p.Digest)
		if err != nil {
			return err
		}
		if err := c.fits(p, ok, e.Size); err != nil {
			return err
		}
	}
	for _, p := range d.lower {
		at, ok, err := c.manifest(p.Digest)
		if err != nil {
			return err
		}
		if err := c.fits(p, ok, at.Size); err != nil {
			return err
		}
		if ok && at.MediaType != p.MediaType {
			return refuse(http.StatusBadRequest, codeManifest, "it says that manifest %s is %.80q; here it is %s", p.Digest, p.MediaType, at.MediaType)
		}
	}
	return nil
}

func (c *call) fits(d v1.Descriptor, found bool, size int64) error {
	if !found {
		if c.sparse {
			return nil
		}
		return refuse(http.StatusNotFound, codeMissing, "it needs %s, which %s does not have: push that first", d.Digest, c.name)
	}
	if size != d.Size {
		return refuse(http.StatusBadRequest, codeManifest, "it says that %s has %d bytes; it has %d", d.Digest, d.Size, size)
	}
	return nil
}

// show gives the manifest its names. What it needs is checked again under the
// lock that deletions have, too. The names come in an order in which every
// power cut leaves a repository that can be used: tags last.
func (c *call) show(p *pushed, at v1.Descriptor) error {
	unlock, err := c.shelf.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.condition(p.tags); err != nil {
		return err
	}
	if err := c.check(p.doc); err != nil {
		return err
	}
	for _, ref := range append([]string{p.name.String()}, p.tags...) {
		if err := c.record(Push, ref, p.name); err != nil {
			return err
		}
	}
	if err := c.linkParts(p.doc, 0); err != nil {
		return err
	}
	if p.doc.subject != nil {
		named := at
		named.Digest = p.name
		if err := c.shelf.refer(c.name, p.doc.subject.Digest, (&manifest{named, p.doc}).referrer()); err != nil {
			return err
		}
	}
	if err := c.shelf.link(c.name, manifestsIn, p.name, entry{at.Digest, string(at.MediaType), at.Size}); err != nil {
		return err
	}
	for _, t := range p.tags {
		old, moved, err := c.shelf.tag(c.name, t)
		if err != nil {
			return err
		}
		if err := c.shelf.put(c.shelf.path(c.name, tagsIn, t), p.name); err != nil {
			return err
		}
		if moved && old != p.name && listTag.MatchString(t) {
			if err := c.dropList(old); err != nil {
				return err
			}
		}
	}
	return nil
}

// condition is RFC 9110's If-Match and If-None-Match on one tag, with which
// clients change an index without losing each other's changes.
func (c *call) condition(tags []string) error {
	match, none := c.r.Header.Get("If-Match"), c.r.Header.Get("If-None-Match")
	if match == "" && none == "" || len(tags) != 1 {
		return nil
	}
	h, ok, err := c.shelf.tag(c.name, tags[0])
	if err != nil {
		return err
	}
	has := func(list string) bool {
		return strings.TrimSpace(list) == "*" || slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return strings.TrimSpace(s) == etag(h) })
	}
	if match != "" && !(ok && has(match)) || none != "" && ok && has(none) {
		return refuse(http.StatusPreconditionFailed, codeDenied, "tag %s has changed: pull it again", tags[0])
	}
	return nil
}

// linkParts makes what d needs the repository's own, so that it outlives a
// release that brought it.
func (c *call) linkParts(d *document, depth int) error {
	if depth > maxDepth {
		return refuse(http.StatusBadRequest, codeManifest, "indexes within indexes, more than %d deep", maxDepth)
	}
	for _, p := range d.parts {
		e, ok, err := c.blob(c.view, c.name, p.Digest)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := c.shelf.link(c.name, blobsIn, p.Digest, entry{At: e.At, Size: e.Size}); err != nil {
			return err
		}
	}
	for _, p := range d.lower {
		if c.repo == nil || c.repo.manifests[p.Digest] == nil {
			continue // pushed, with all it needs, or sparse
		}
		m := c.repo.manifests[p.Digest]
		if err := c.linkParts(m.document, depth+1); err != nil {
			return err
		}
		if err := c.shelf.link(c.name, manifestsIn, p.Digest, entry{m.desc.Digest, string(m.desc.MediaType), m.desc.Size}); err != nil {
			return err
		}
	}
	return nil
}
