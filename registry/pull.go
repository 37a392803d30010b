package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// exists says whether there is such a repository, of a release or pushed.
func (c *call) exists() bool { return c.repo != nil || c.shelf.has(c.name) }

// resolve finds the digest that a tag or digest in a request means.
func (c *call) resolve(ref string) (h v1.Hash, ok bool, err error) {
	if strings.Contains(ref, ":") {
		h, err = parseDigest(ref)
		return h, err == nil, err
	}
	if !tagForm.MatchString(ref) {
		return h, false, nil
	}
	if c.repo != nil {
		if h, ok = c.repo.tags[ref]; ok {
			return h, true, nil
		}
	}
	return c.shelf.tag(c.name, ref)
}

// manifest finds where manifest h, which this repository shows, is.
func (c *call) manifest(h v1.Hash) (d v1.Descriptor, ok bool, err error) {
	if c.repo != nil {
		if m := c.repo.manifests[h]; m != nil {
			return m.desc, true, nil
		}
	}
	e, ok, err := c.shelf.entry(c.name, manifestsIn, h)
	return v1.Descriptor{MediaType: types.MediaType(e.Type), Digest: e.At, Size: e.Size}, ok, err
}

// blob finds where blob h, which repository name shows, is. A manifest is a
// blob, too.
func (s *server) blob(v *view, name string, h v1.Hash) (e entry, ok bool, err error) {
	if r := v.repos[name]; r != nil {
		if size, ok := r.blobs[h]; ok {
			return entry{At: h, Size: size}, true, nil
		}
	}
	for _, k := range []string{blobsIn, manifestsIn} {
		if e, ok, err = s.shelf.entry(name, k, h); ok || err != nil {
			return e, ok, err
		}
	}
	return e, false, nil
}

func (c *call) getManifest() error {
	if !c.exists() {
		return refuse(http.StatusNotFound, codeNoName, "no repository %s", c.name)
	}
	unknown := refuse(http.StatusNotFound, codeNoManifest, "no manifest %.80q here", c.ref)
	h, ok, err := c.resolve(c.ref)
	if err != nil {
		return err
	}
	d, shown, err := c.manifest(h)
	if err != nil {
		return err
	}
	if ok && !shown {
		return c.absent(h, unknown)
	}
	if !ok {
		return unknown
	}
	c.w.Header().Set("Vary", "Accept")
	if !accepts(c.r.Header.Values("Accept"), string(d.MediaType)) {
		return refuse(http.StatusNotFound, codeNoManifest, "manifest %.80q is %s, which the Accept header doesn't allow", c.ref, d.MediaType)
	}
	b, err := readManifest(c.source, d)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown
	}
	if err != nil {
		return err
	}
	head(c.w, h, string(d.MediaType))
	serveContent(c.w, c.r, bytes.NewReader(b))
	return nil
}

// accepts says whether one of the Accept header's lines allows media type t.
// No line at all allows everything; parameters, and with them weights, are
// not looked at: there is only one form to give.
func accepts(lines []string, t string) bool {
	group, _, _ := strings.Cut(t, "/")
	for _, a := range strings.Split(strings.Join(lines, ","), ",") {
		a, _, _ = strings.Cut(a, ";")
		switch strings.ToLower(strings.TrimSpace(a)) {
		case strings.ToLower(t), "*/*", group + "/*":
			return true
		case "":
			if len(lines) == 0 {
				return true
			}
		}
	}
	return false
}

func (c *call) getBlob() error {
	if !c.exists() {
		return refuse(http.StatusNotFound, codeNoName, "no repository %s", c.name)
	}
	h, err := parseDigest(c.ref)
	if err != nil {
		return err
	}
	unknown := refuse(http.StatusNotFound, codeBlob, "no blob %s here", h)
	e, ok, err := c.blob(c.view, c.name, h)
	if err != nil {
		return err
	}
	if !ok {
		return unknown
	}
	f, err := c.source.Open(c.r.Context(), e.At)
	if errors.Is(err, fs.ErrNotExist) {
		return elsewhere404(err, unknown)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Size() != e.Size {
		return fmt.Errorf("blob %s has %d bytes, and should have %d: load the bundle, or push it, again", e.At, f.Size(), e.Size)
	}
	c.serveBlob(h, f)
	return nil
}

// absent answers for a manifest that has a name here and can't be read.
func (c *call) absent(h v1.Hash, unknown error) error {
	if c.repo == nil {
		return unknown
	}
	f, err := c.source.Open(c.r.Context(), h)
	if err != nil {
		return elsewhere404(err, unknown)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(f, maxManifest)); err != nil {
		return err // so that the log says what is damaged
	}
	return unknown
}

// elsewhere404 is unknown, with the words of an ElsewhereError.
func elsewhere404(err, unknown error) error {
	var e *ElsewhereError
	var p *problem
	if errors.As(err, &e) && errors.As(unknown, &p) {
		return &problem{p.status, p.code, p.message + ": " + e.Words}
	}
	return unknown
}

// serveContent is http.ServeContent without a name and a time, to clients that
// take what they asked for.
func serveContent(w http.ResponseWriter, r *http.Request, b io.ReadSeeker) {
	p := &paced{ResponseWriter: w, ctl: http.NewResponseController(w)}
	http.ServeContent(p, r, "", time.Time{}, b)
	_ = p.ctl.SetWriteDeadline(time.Time{}) // for the connection's next answer
}

// slowest is how long a client may take for stretch bytes. What it takes to read
// them here does not count.
var slowest = 60 * time.Second

const stretch = 4 << 20

// paced gives up on a client that takes too long.
type paced struct {
	http.ResponseWriter
	ctl  *http.ResponseController
	n    int           // bytes of this stretch
	took time.Duration // for them
}

// ReadFrom copies in steps that are worth a deadline each.
func (p *paced) ReadFrom(r io.Reader) (int64, error) {
	size := int64(chunk)
	if l, ok := r.(*io.LimitedReader); ok {
		size = max(1, min(size, l.N))
	}
	return io.CopyBuffer(struct{ io.Writer }{p}, r, make([]byte, size))
}

func (p *paced) Write(b []byte) (int, error) {
	if p.n >= stretch {
		p.n, p.took = 0, 0
	}
	begin := time.Now()
	_ = p.ctl.SetWriteDeadline(begin.Add(slowest - p.took)) // a test's writer has none
	n, err := p.ResponseWriter.Write(b)
	p.n, p.took = p.n+n, p.took+time.Since(begin)
	return n, err
}

// head sets what every answer that carries content has. The content never
// changes under its digest.
func head(w http.ResponseWriter, h v1.Hash, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", h.String())
	w.Header().Set("ETag", etag(h))
}

func etag(h v1.Hash) string { return `"` + h.String() + `"` }

// tags are the repository's, of the release and pushed.
func (c *call) tags() ([]string, error) {
	all, err := c.shelf.list(c.shelf.path(c.name, tagsIn))
	if c.repo != nil {
		for t := range c.repo.tags {
			all = append(all, t)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

func (c *call) getTags() error {
	if !c.exists() {
		return refuse(http.StatusNotFound, codeNoName, "no repository %s", c.name)
	}
	all, err := c.tags()
	if err != nil {
		return err
	}
	some, err := page(c.w, c.r, all)
	if err != nil {
		return err
	}
	return reply(c.w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{c.name, orEmpty(some)})
}

// orEmpty makes nil a list in JSON.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// pullable lists the repositories that the client may pull from.
func (c *call) pullable(v *view) ([]string, error) {
	all, err := c.shelf.repos()
	if err != nil {
		return nil, err
	}
	for n := range v.repos {
		all = append(all, n)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(n string) bool { return !c.gate.may(c.who, n, Pull) }), nil
}

// catalog lists repositories: no part of the specification, but what
// registries have done since before it.
func (c *call) catalog() error {
	if err := c.pingable(); err != nil {
		return err
	}
	v, err := c.views.get()
	if err != nil {
		return err
	}
	all, err := c.pullable(v)
	if err != nil {
		return err
	}
	some, err := page(c.w, c.r, all)
	if err != nil {
		return err
	}
	return reply(c.w, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{orEmpty(some)})
}

// maxReferrers is the size of descriptors, in bytes, from which a list of
// referrers is cut and goes on behind a link.
const maxReferrers = maxManifest / 2

// getReferrers lists the manifests whose subject is ref. As the specification
// wants, it never answers 404: nothing refers to what isn't here.
func (c *call) getReferrers() error {
	h, err := parseDigest(c.ref)
	if err != nil {
		return err
	}
	all, err := c.shelf.referrers(c.name, h)
	if err != nil {
		return err
	}
	if c.repo != nil {
		all = append(all, c.repo.referrers[h]...)
	}
	slices.SortFunc(all, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	all = slices.CompactFunc(all, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest })
	q := c.r.URL.Query()
	if want := q.Get("artifactType"); want != "" {
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
		all = slices.DeleteFunc(all, func(d v1.Descriptor) bool { return d.ArtifactType != want })
	}
	if last := q.Get("last"); last != "" {
		all = slices.DeleteFunc(all, func(d v1.Descriptor) bool { return d.Digest.String() <= last })
	}
	out := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: c.cut(q, orEmpty(all))}
	return reply(c.w, string(types.OCIImageIndex), out)
}

// cut is what fits into one answer; a link leads to the rest.
func (c *call) cut(q url.Values, all []v1.Descriptor) []v1.Descriptor {
	size := 0
	for i, d := range all {
		for k, v := range d.Annotations {
			size += len(k) + len(v) + 8
		}
		if size += 512; size > maxReferrers && i > 0 {
			q.Set("last", all[i-1].Digest.String())
			next(c.w, c.r, q)
			return all[:i]
		}
	}
	return all
}
