// Package registry serves the store as an OCI registry (distribution-spec
// 1.1), for pulling: container engines, K3s, crane and oras read images,
// models and files straight from the store's blobs, without a copy.
//
//	http.ListenAndServe("127.0.0.1:5000", registry.New(store, registry.Options{}))
//	crane manifest 127.0.0.1:5000/openclaw:2026.9.6
//
// # Names
//
// A name in the store is a repository and a tag: "openclaw:2026.9.6" is tag
// 2026.9.6 of repository openclaw, "web" is tag latest of web, "web@sha256:…"
// is repository web with a manifest and no tag. There is no implied
// "library/". A name that the specification doesn't allow can't be pulled.
//
// # What a repository shows
//
// What its tags reach and nothing else: indexes, manifests, configurations
// and layers. A blob that only another repository uses answers 404 here, even
// though the store holds it. A manifest that has a subject and no name of its
// own in index.json belongs to the repositories that show its subject; so a
// signature travels without a tag.
//
// # Integrity
//
// A manifest is hashed each time it is served. A blob isn't: the store
// verified it when it was written, the registry compares the size, and
// clients verify the digest. A response never carries content under another
// digest than the one asked for, unless the disk rots under a blob.
//
// Limits: pushing and deleting answer 405; there is no access control, so
// listen on loopback or inside the appliance only; digests are sha256.
package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// Options may be left zero.
type Options struct {
	Log *slog.Logger // gets what made a request fail on this side; nil: nowhere
}

// New returns the registry over store. It is safe for concurrent use and sees
// a new tag at the next request.
func New(store *content.Store, o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &server{store: store, log: o.Log, views: views{store: store}}
}

type server struct {
	store *content.Store
	log   *slog.Logger
	views views
}

// Names and tags: distribution-spec, "Pulling manifests".
var (
	nameForm   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestForm = regexp.MustCompile(`^[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$`)
)

const maxName = 255

func goodName(s string) bool { return len(s) <= maxName && nameForm.MatchString(s) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := s.serve(w, r)
	if err == nil {
		return
	}
	var p *problem
	if !errors.As(err, &p) {
		s.log.Error("registry", "method", r.Method, "path", r.URL.Path, "err", err)
		p = &problem{http.StatusInternalServerError, "UNKNOWN", "the store could not answer; the appliance's log says why"}
	}
	p.write(w)
}

// serve answers r, or returns an error before anything was written.
func (s *server) serve(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	if !ok || path != "" && path[0] != '/' {
		return &problem{http.StatusNotFound, "UNSUPPORTED", "only /v2/ is served here"}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return &problem{http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method + ": this registry is filled from signed bundles only; add the item to a bundle and load that"}
	}
	v, err := s.views.get()
	if err != nil {
		return err
	}
	path = strings.TrimPrefix(path, "/")
	switch path {
	case "":
		return reply(w, "application/json", struct{}{})
	case "_catalog":
		return s.catalog(w, r, v)
	}
	p := strings.Split(path, "/")
	if len(p) < 3 {
		return &problem{http.StatusNotFound, "NAME_UNKNOWN", "no such endpoint"}
	}
	name, what, ref := strings.Join(p[:len(p)-2], "/"), p[len(p)-2], p[len(p)-1]
	if !goodName(name) {
		return &problem{http.StatusBadRequest, "NAME_INVALID", fmt.Sprintf("repository name %.80q: want lower-case letters, digits, and . _ - / between them, %d bytes at most", name, maxName)}
	}
	return s.route(w, r, v.repos[name], name, what, ref)
}

// route answers for one repository, which is nil when there is no such.
func (s *server) route(w http.ResponseWriter, r *http.Request, repo *repo, name, what, ref string) error {
	switch {
	case what == "referrers":
		return referrers(w, r, repo, ref)
	case repo == nil:
		return &problem{http.StatusNotFound, "NAME_UNKNOWN", "no repository " + name}
	case what == "manifests":
		return s.manifest(w, r, repo, ref)
	case what == "blobs":
		return s.blob(w, r, repo, ref)
	case what == "tags" && ref == "list":
		return tags(w, r, repo, name)
	}
	return &problem{http.StatusNotFound, "NAME_UNKNOWN", "no such endpoint"}
}

// parseDigest tells a malformed digest, which is an error, from a well-formed
// one of an algorithm that the store doesn't have, which is just not there.
func parseDigest(s string) (v1.Hash, error) {
	if !digestForm.MatchString(s) {
		return v1.Hash{}, &problem{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("digest %.80q: want algorithm:encoded", s)}
	}
	alg, hex, _ := strings.Cut(s, ":")
	h := v1.Hash{Algorithm: alg, Hex: hex}
	if alg == "sha256" && !sha256Form.MatchString(hex) {
		return h, &problem{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("digest %.80q: want 64 lower-case hex digits after sha256", s)}
	}
	return h, nil
}

var sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s *server) manifest(w http.ResponseWriter, r *http.Request, repo *repo, ref string) error {
	unknown := &problem{http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("no manifest %.80q here", ref)}
	h, ok := repo.tags[ref]
	if !ok {
		if !strings.Contains(ref, ":") {
			return unknown
		}
		var err error
		if h, err = parseDigest(ref); err != nil {
			return err
		}
	}
	m, ok := repo.manifests[h]
	if !ok {
		return unknown
	}
	w.Header().Set("Vary", "Accept")
	if !accepts(r.Header.Values("Accept"), string(m.desc.MediaType)) {
		return &problem{http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("manifest %.80q is %s, which the Accept header doesn't allow", ref, m.desc.MediaType)}
	}
	b, err := readManifest(s.store, m.desc)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown
	}
	if err != nil {
		return err
	}
	head(w, h, string(m.desc.MediaType))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
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

func (s *server) blob(w http.ResponseWriter, r *http.Request, repo *repo, ref string) error {
	h, err := parseDigest(ref)
	if err != nil {
		return err
	}
	unknown := &problem{http.StatusNotFound, "BLOB_UNKNOWN", fmt.Sprintf("no blob %s here", h)}
	size, ok := repo.blobs[h]
	if !ok {
		return unknown
	}
	f, err := s.store.Open(h)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("blob %s is %v with %d bytes, its manifest says %d: load the bundle again", h, fi.Mode(), fi.Size(), size)
	}
	head(w, h, "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// head sets what every answer that carries content has. The content never
// changes under its digest.
func head(w http.ResponseWriter, h v1.Hash, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", h.String())
	w.Header().Set("ETag", `"`+h.String()+`"`)
}
