package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// chunk is how much of a body is read at once, in bytes.
const chunk = 256 << 10

// startUpload mounts, takes a blob that comes at once, or begins a session.
func (c *call) startUpload() error {
	if c.ref != "" {
		return refuse(http.StatusMethodNotAllowed, codeUnsupported, "POST begins an upload, without a session")
	}
	q := c.r.URL.Query()
	if alg := q.Get("digest-algorithm"); alg != "" {
		if err := checkAlgorithm(alg); err != nil {
			return err
		}
	}
	if q.Get("mount") != "" {
		done, err := c.mount(q.Get("mount"), q.Get("from"))
		if done || err != nil {
			return err
		}
	} else if q.Get("digest") != "" {
		return c.takeWhole(q.Get("digest"))
	}
	u, err := c.begin()
	if err != nil {
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	c.session(u.ID(), 0)
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// begin makes a session. A collection could take its file in the moment before
// it is ours.
func (c *call) begin() (*content.Upload, error) {
	release, err := c.hold()
	if err != nil {
		return nil, err
	}
	defer release()
	return c.ups.begin(c.name, c.who.String())
}

// session sets the headers that lead on to a session with n bytes. "0-0" is
// also what registries say of none.
func (c *call) session(id string, n int64) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.name+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-UUID", id)
	h.Set("Range", fmt.Sprintf("0-%d", max(0, n-1)))
}

// mount shows a blob that a repository which the client may pull from shows.
// Where there is none it isn't done, and the client uploads.
func (c *call) mount(digest, from string) (done bool, err error) {
	h, err := ownDigest(digest)
	if err != nil {
		return false, err
	}
	sources := []string{from}
	if from == "" {
		if sources, err = c.pullable(c.view); err != nil {
			return false, err
		}
	} else if !goodName(from) || !c.gate.may(c.who, from, Pull) {
		return false, nil
	}
	release, err := c.hold()
	if err != nil {
		return false, err
	}
	defer release()
	if err := c.renew(); err != nil {
		return false, err
	}
	for _, name := range sources {
		e, ok, err := c.blob(c.view, name, h)
		if err != nil {
			return false, err
		}
		if n, serr := c.store.Stat(e.At); ok && serr == nil && n == e.Size {
			return true, c.received(h, e)
		}
	}
	return false, nil
}

// received shows the blob h here and says so. The caller holds the store.
func (c *call) received(h v1.Hash, e entry) error {
	unlock, err := c.shelf.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.record(Push, h.String(), h); err != nil {
		return err
	}
	e.Type = ""
	if err := c.shelf.link(c.name, blobsIn, h, e); err != nil {
		return err
	}
	c.w.Header().Set("Location", "/v2/"+c.name+"/blobs/"+h.String())
	c.w.Header().Set("Docker-Content-Digest", h.String())
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// takeWhole takes a blob in one request.
func (c *call) takeWhole(digest string) error {
	h, err := ownDigest(digest)
	if err != nil {
		return err
	}
	u, err := c.begin()
	if err != nil {
		return err
	}
	err = c.finish(u, h)
	if err != nil {
		c.ups.drop(u.ID()) // nobody knows its name
	}
	return err
}

// endUpload takes the last bytes of a session, if any, and makes it a blob.
func (c *call) endUpload() error {
	h, err := ownDigest(c.r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	u, err := c.open(c.ref)
	if err != nil {
		return err
	}
	return c.finish(u, h)
}

// finish takes the body and makes u the blob h.
func (c *call) finish(u *content.Upload, h v1.Hash) error {
	if err := c.receive(u); err != nil {
		return errors.Join(err, u.Close())
	}
	release, err := c.hold() // until it has a name
	if err != nil {
		return errors.Join(err, u.Close())
	}
	defer release()
	e := entry{At: u.Digest(), Size: u.Size()}
	if h.Algorithm == "sha256" && h != e.At {
		c.ups.end(u.ID())
		return errors.Join(mismatch(e.At, h), u.Discard())
	}
	if err := u.Commit(e.At); err != nil {
		return err
	}
	c.ups.end(u.ID())
	if got, err := c.named(h, e.At); err != nil {
		return err
	} else if got != h {
		return mismatch(got, h) // no name: the next collection takes it
	}
	return c.received(h, e)
}

func mismatch(got, want v1.Hash) error {
	return refuse(http.StatusBadRequest, codeDigest, "what came has digest %s, want %s; nothing was kept: upload it again", got, want)
}

// named returns the digest of the blob at in h's algorithm.
func (c *call) named(h, at v1.Hash) (v1.Hash, error) {
	if h.Algorithm == at.Algorithm {
		return at, nil
	}
	f, err := c.store.Open(at)
	if err != nil {
		return h, err
	}
	defer f.Close()
	sum := hashers[h.Algorithm]()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, make([]byte, chunk)); err != nil {
		return h, err
	}
	return v1.Hash{Algorithm: h.Algorithm, Hex: hex.EncodeToString(sum.Sum(nil))}, nil
}

// open goes on with a session of this repository. The error is what the
// client is told.
func (c *call) open(id string) (*content.Upload, error) {
	none := refuse(http.StatusNotFound, codeNoUpload, "no upload %.40q here: begin a new one", id)
	if !c.ups.in(id, c.name) {
		return nil, none
	}
	u, err := c.store.Upload(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.ups.end(id)
		return nil, none
	case errors.Is(err, content.ErrBusy):
		return nil, refuse(http.StatusConflict, codeUpload, "another request writes to upload %s: wait for that", id)
	}
	return u, err
}

func (c *call) patchUpload() error {
	u, err := c.open(c.ref)
	if err != nil {
		return err
	}
	err = c.receive(u)
	c.session(c.ref, u.Size())
	if err := errors.Join(err, u.Close()); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (c *call) uploadStatus() error {
	u, err := c.open(c.ref)
	if err != nil {
		return err
	}
	c.session(c.ref, u.Size())
	if err := u.Close(); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *call) cancelUpload() error {
	u, err := c.open(c.ref)
	if err != nil {
		return err
	}
	c.ups.end(c.ref)
	if err := u.Discard(); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

var rangeForm = regexp.MustCompile(`^([0-9]{1,18})-([0-9]{1,18})$`)

// parseRange reads a chunk's Content-Range, which is not HTTP's: first and
// last byte. It returns the first byte and the length; -1 when there is none.
func parseRange(s string) (from, n int64, err error) {
	if s == "" {
		return -1, -1, nil
	}
	m := rangeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, refuse(http.StatusBadRequest, codeUpload, "Content-Range %.60q: want FIRST-LAST", s)
	}
	from, _ = strconv.ParseInt(m[1], 10, 64) // 18 digits always fit
	last, _ := strconv.ParseInt(m[2], 10, 64)
	if last < from {
		return 0, 0, refuse(http.StatusRequestedRangeNotSatisfiable, codeUpload, "Content-Range %s ends before it begins", s)
	}
	return from, last - from + 1, nil
}

// receive appends the body to u. What came before a broken connection is kept
// and counts.
func (c *call) receive(u *content.Upload) error {
	from, n, err := parseRange(c.r.Header.Get("Content-Range"))
	if err != nil {
		return err
	}
	if from >= 0 && from != u.Size() {
		c.session(u.ID(), u.Size())
		return refuse(http.StatusRequestedRangeNotSatisfiable, codeUpload, "the chunk begins at byte %d, want %d", from, u.Size())
	}
	length := c.r.ContentLength // -1: unknown
	if n >= 0 && length >= 0 && n != length {
		return refuse(http.StatusBadRequest, codeSize, "Content-Range is %d bytes long, Content-Length %d", n, length)
	}
	if err := c.ups.room(u.ID(), u.Size(), max(length, 0)); err != nil {
		return err
	}
	got, err := c.copy(u)
	if err != nil {
		return err
	}
	if n >= 0 && got != n {
		return refuse(http.StatusBadRequest, codeSize, "%d bytes came, Content-Range says %d", got, n)
	}
	return nil
}

func (c *call) copy(u *content.Upload) (n int64, err error) {
	body, b := c.body(), make([]byte, chunk)
	for {
		m, rerr := body.Read(b)
		if m > 0 {
			if err := c.ups.grow(u.ID(), u.Size(), int64(m)); err != nil {
				return n, err
			}
			if _, err := u.Write(b[:m]); err != nil {
				return n, err
			}
			n += int64(m)
		}
		if errors.Is(rerr, io.EOF) {
			return n, nil
		}
		if rerr != nil {
			return n, refuse(http.StatusBadRequest, codeUpload, "the upload broke off after %d bytes, which are kept: %v", u.Size(), rerr)
		}
	}
}

// idle is how long a client may be silent within a request's body.
var idle = 60 * time.Second

// body is the request's body, of which something must come once in a while.
func (c *call) body() io.ReadCloser {
	return &patient{c.r.Body, http.NewResponseController(c.w)}
}

type patient struct {
	io.ReadCloser
	ctl *http.ResponseController
}

// Read takes the deadline away at the end: what is done with the body may take
// longer, and must not look like a client that has gone. One that is silent keeps
// it, or the server would wait for the rest before it answers.
func (p *patient) Read(b []byte) (int, error) {
	_ = p.ctl.SetReadDeadline(time.Now().Add(idle)) // a test's writer has none
	n, err := p.ReadCloser.Read(b)
	if err == io.EOF {
		_ = p.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}
