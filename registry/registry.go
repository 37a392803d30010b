// Package registry serves the store as an OCI registry (distribution-spec
// 1.1): container engines, K3s, crane, oras and skopeo read images, models and
// files straight from the store's blobs, without a copy, and operators push
// more of them.
//
//	http.ListenAndServe("127.0.0.1:5000", registry.New(store, registry.Options{}))
//	crane manifest 127.0.0.1:5000/openclaw:2026.9.6
//
//	users, err := registry.OpenUsers("users") // htpasswd -B
//	h, err := registry.Open(store, registry.Options{Push: true, Users: users, Rules: []registry.Rule{
//		registry.LoopbackPulls,
//		{Who: "user:*", Repos: "**", May: []registry.Right{registry.Pull, registry.Push, registry.Delete}},
//	}})
//
// # Names
//
// A name in the store's index.json is a repository and a tag:
// "openclaw:2026.9.6" is tag 2026.9.6 of repository openclaw, "web" is tag
// latest of web, "web@sha256:…" is repository web with a manifest and no tag.
// There is no implied "library/". A name that the specification doesn't allow
// can't be pulled. Those are the names of installed releases. The registry
// reads them and never writes them: nobody who pushes can change what a
// release means by a name, or delete it. What is pushed has names of its own
// under registry/ in the store (see shelfDir), beside them.
//
// # What a repository shows
//
// Of a release: what its tags reach and nothing else, indexes, manifests,
// configurations and layers. A manifest that has a subject and no name of its
// own in index.json belongs to the repositories that show its subject; so a
// signature travels without a tag. Of what was pushed: the blobs and manifests
// that were pushed to this repository or mounted into it. A blob that only
// another repository has answers 404 here, even though the store holds it.
//
// A blob can be mounted from each repository that the client may pull from;
// without a "from" all of those are searched.
//
// # Integrity
//
// A manifest is hashed each time it is served. A blob isn't: the store
// verified it when it was written, the registry compares the size, and
// clients verify the digest. A response never carries content under another
// digest than the one asked for, unless the disk rots under a blob.
//
// A pushed manifest must name only what its repository shows, with the right
// sizes (except layers that say they are elsewhere, and the subject); blobs
// and manifests that another manifest here needs can't be deleted. A success
// is answered when all of it is flushed to the disk.
//
// Of serves another Source than a store, for pulling: a bundle from its media,
// which proves each chunk before it is sent.
//
// Content may be named by its sha256 or sha512. The store keeps it once, by
// sha256; sha512 names need one more read when an upload ends.
//
// # Who may
//
// Rules say who may pull, push and delete in which repositories; without
// rules, connections from this host may pull and nobody may do anything else.
//
// # Space
//
// Deleting takes names away. The bytes go with Collect, which keeps all that
// releases, slots, repositories and uploads under way need.
//
// Limits: no token service (passwords and client certificates only); a nested
// index is followed eight levels down; one process at a time should accept
// pushes, as the limits on uploads are counted per process.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
)

// Options may be left zero: then it is for pulling, from this host only.
type Options struct {
	Log    *slog.Logger // gets what made a request fail on this side; nil: nowhere
	Push   bool         // take pushes and deletions from those who have the right
	Rules  []Rule       // who may do what; nil: LoopbackPulls
	Users  *Users       // names and passwords; nil: there are none
	Limits Limits
	// Sparse takes manifests whose parts are not all here.
	Sparse bool
	// Record is told of each change before it is made, and is durable when it
	// returns; on its error the change is not made. It is called by many
	// goroutines. nil: nowhere.
	Record func(context.Context, Change) error
}

// Change is something that is about to be pushed, mounted or deleted.
type Change struct {
	Who    string // "user:NAME", "cert:NAME" or an address
	Right  Right  // Push or Delete
	Repo   string
	Ref    string // tag or digest, as the client gave it
	Digest v1.Hash
}

// New returns the registry over store, for pulling; what o says of pushing is
// refused. It is safe for concurrent use and sees a new tag at the next
// request.
func New(store *content.Store, o Options) http.Handler {
	o.Push = false
	h, err := Open(store, o)
	if err != nil { // without pushing, only rules can be wrong
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			(&problem{http.StatusInternalServerError, codeUnknown, err.Error()}).write(w)
		})
	}
	return h
}

// Open is New for a registry that may take pushes. It makes the folder that
// holds their names.
func Open(store *content.Store, o Options) (http.Handler, error) {
	s, err := newServer(storeSource{store}, o)
	if err != nil {
		return nil, err
	}
	s.store, s.shelf = store, shelf{filepath.Join(store.Dir(), shelfDir)}
	if !s.push {
		return s, nil
	}
	if err := durable.MkdirAll(filepath.Join(s.shelf.dir, "uploads"), 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w: pushing needs to write in the store", err)
	}
	s.ups, err = openSessions(store, s.shelf, o.Limits)
	return s, err
}

func newServer(src Source, o Options) (*server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rules == nil {
		o.Rules = []Rule{LoopbackPulls}
	}
	for _, r := range o.Rules {
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	return &server{
		source: src, log: o.Log, push: o.Push, sparse: o.Sparse, views: views{source: src},
		gate: gate{o.Rules, o.Users}, tell: o.Record,
	}, nil
}

type server struct {
	source Source
	store  *content.Store // nil where nobody can push
	log    *slog.Logger
	push   bool
	sparse bool
	views  views
	shelf  shelf // empty where nobody can push
	gate   gate
	ups    *sessions // nil unless push
	tell   func(context.Context, Change) error
}

// call is one request for something in a repository.
type call struct {
	*server
	w    http.ResponseWriter
	r    *http.Request
	who  client
	view *view
	repo *repo  // the release's part of it, or nil
	name string // the repository's
	ref  string // digest, tag or session
}

// action is what a method does, and the right that it needs.
type action struct {
	need Right
	do   func(*call) error
}

// actions are distribution-spec, "Endpoints": what is asked for, and how.
var actions = map[string]map[string]action{
	"manifests": {"GET": {Pull, (*call).getManifest}, "HEAD": {Pull, (*call).getManifest}, "PUT": {Push, (*call).putManifest}, "DELETE": {Delete, (*call).deleteManifest}},
	"blobs":     {"GET": {Pull, (*call).getBlob}, "HEAD": {Pull, (*call).getBlob}, "DELETE": {Delete, (*call).deleteBlob}},
	"uploads": {
		"POST": {Push, (*call).startUpload}, "PATCH": {Push, (*call).patchUpload}, "PUT": {Push, (*call).endUpload},
		"GET": {Push, (*call).uploadStatus}, "DELETE": {Push, (*call).cancelUpload},
	},
	"referrers": {"GET": {Pull, (*call).getReferrers}, "HEAD": {Pull, (*call).getReferrers}},
	"tags":      {"GET": {Pull, (*call).getTags}, "HEAD": {Pull, (*call).getTags}},
}

// Names and tags: distribution-spec, "Pulling manifests".
var (
	nameForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
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
	p := s.explain(err)
	if p.status == http.StatusInternalServerError {
		s.log.Error("registry", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	p.write(w)
}

// explain is what the client is told of err.
func (s *server) explain(err error) *problem {
	var p *problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &problem{http.StatusInsufficientStorage, codeDenied, "the store is full: delete what isn't needed, collect garbage, and push again"}
	}
	return &problem{http.StatusInternalServerError, codeUnknown, "the store could not answer; the appliance's log says why"}
}

// serve answers r, or returns an error before anything was written.
func (s *server) serve(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	if !ok || path != "" && path[0] != '/' {
		return refuse(http.StatusNotFound, codeUnsupported, "only /v2/ is served here")
	}
	who, err := s.gate.client(w, r)
	if err != nil {
		return err
	}
	c := &call{server: s, w: w, r: r, who: who}
	switch path = strings.TrimPrefix(path, "/"); path {
	case "":
		return c.ping()
	case "_catalog":
		return c.catalog()
	}
	what := c.parse(path)
	if what == "" {
		return refuse(http.StatusNotFound, codeNoName, "no such endpoint")
	}
	if !goodName(c.name) {
		return refuse(http.StatusBadRequest, codeName, "repository name %.80q: want lower-case letters, digits, and . _ - / between them, %d bytes at most", c.name, maxName)
	}
	return c.route(actions[what])
}

// parse takes the path behind /v2/ apart, and returns what is asked for.
func (c *call) parse(path string) (what string) {
	p := strings.Split(path, "/")
	n := len(p)
	switch {
	case n >= 4 && p[n-3] == "blobs" && p[n-2] == "uploads":
		c.name, c.ref, what = strings.Join(p[:n-3], "/"), p[n-1], "uploads"
	case n >= 3 && p[n-2] == "blobs" && p[n-1] == "uploads":
		c.name, what = strings.Join(p[:n-2], "/"), "uploads"
	case n >= 3:
		c.name, c.ref, what = strings.Join(p[:n-2], "/"), p[n-1], p[n-2]
	}
	if actions[what] == nil || what == "tags" && c.ref != "list" {
		return ""
	}
	return what
}

// route picks the action for the method, sees to it that it is allowed, and
// takes it.
func (c *call) route(as map[string]action) (err error) {
	allowed := maps.Clone(as)
	maps.DeleteFunc(allowed, func(_ string, a action) bool { return a.need != Pull && !c.push })
	a, ok := allowed[c.r.Method]
	if !ok {
		c.w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(allowed)), ", "))
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "%.20s: this registry does not do that here; without pushing it is filled from signed bundles only", c.r.Method)
	}
	if !c.gate.may(c.who, c.name, a.need) {
		if c.who.user == "" && c.who.cert == "" {
			return c.gate.errUnauthorized(c.w)
		}
		return refuse(http.StatusForbidden, codeDenied, "%s may not %s in %s: no rule of this registry says so", c.who, a.need, c.name)
	}
	if err := c.renew(); err != nil {
		return err
	}
	return a.do(c)
}

// renew looks at the releases' names as they are now. A body may have come for
// as long as the client liked: what it refers to is looked for when collections
// are held off.
func (c *call) renew() (err error) {
	if c.view, err = c.views.get(); err != nil {
		return err
	}
	c.repo = c.view.repos[c.name]
	return nil
}

// hold keeps collections away until release is called: from before content is
// looked for or committed until it has a name.
func (s *server) hold() (release func(), err error) {
	mine, err := s.shelf.flock(".collect", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	theirs, err := s.store.Hold()
	if err != nil {
		mine()
		return nil, err
	}
	return func() { theirs(); mine() }, nil
}

// record tells of a change that nothing but a failing disk can keep from being
// made now.
func (c *call) record(what Right, ref string, h v1.Hash) error {
	if c.tell == nil {
		return nil
	}
	err := c.tell(c.r.Context(), Change{c.who.String(), what, c.name, ref, h})
	if err != nil {
		return fmt.Errorf("not recorded, so not done: %s %s in %s: %w", what, ref, c.name, err)
	}
	return nil
}

// ping says that this is a registry, to those who may do anything in it. Where
// there are passwords it asks for one, also those who need none for what they
// want: most clients send a password only when this asked for it, and go on
// without one when they have none.
func (c *call) ping() error {
	if err := c.pingable(); err != nil {
		return err
	}
	if c.gate.users != nil && c.who.user == "" && c.who.cert == "" {
		return c.gate.errUnauthorized(c.w)
	}
	return reply(c.w, "application/json", struct{}{})
}

func (c *call) pingable() error {
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		c.w.Header().Set("Allow", "GET, HEAD")
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "%.20s: want GET or HEAD", c.r.Method)
	}
	if !c.gate.known(c.who) {
		return c.gate.errUnauthorized(c.w)
	}
	return nil
}
