package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/layer"
	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/model"
	"github.com/clawbox/clawbox/bundle/sbom"
	"github.com/clawbox/clawbox/internal/legible"
)

// look is what the content of a blob showed while it was read: key material, and
// of an image's layer the software in it. It is remembered by digest, beside the
// sums, and holds no byte of a secret.
type look struct {
	Found []found    `json:"found,omitempty"`
	More  bool       `json:"more,omitempty"` // there is more than Found: licence.MaxFindings
	Layer *sbom.Seen `json:"layer,omitempty"`
}

// found is a licence.Finding without the item, which differs.
type found struct {
	File        string `json:"file,omitempty"` // in the layer; "" for the blob itself
	Rule        string `json:"rule"`
	Offset      int64  `json:"offset"`
	Fingerprint string `json:"fingerprint"`
}

// What a blob is looked at as.
const (
	asLayer = "layer"  // unpacked, each file scanned, packages listed
	asRaw   = "raw"    // scanned as it is; tensors of weights are not
	asImage = "config" // an image's configuration: small
	asText  = "text"   // a manifest: small
)

// lookAs says what a blob of an item of that kind is looked at as.
func lookAs(kind string, d v1.Descriptor) string {
	switch {
	case isManifest(d):
		return asText
	case d.MediaType == types.OCIConfigJSON || d.MediaType == types.DockerConfigJSON:
		return asImage
	case kind == "image" && strings.Contains(string(d.MediaType), "tar"):
		return asLayer
	}
	return asRaw
}

// lookVersion changes when a look at the same bytes tells more than before.
const lookVersion = "1"

// looks remembers, in this build and across builds.
type looks struct {
	cache *cache

	mu   sync.Mutex
	done map[string]look
}

func lookKey(h v1.Hash, as string) string {
	return strings.Join([]string{h.String(), as, lookVersion, licence.Rules}, " ")
}

func (l *looks) get(h v1.Hash, as string) (look, bool) {
	key := lookKey(h, as)
	l.mu.Lock()
	defer l.mu.Unlock()
	if x, ok := l.done[key]; ok {
		return x, true
	}
	var x look
	if !l.cache.get("looks", key, &x) {
		return x, false
	}
	l.done[key] = x
	return x, true
}

// put remembers a look: in this build, and across builds when keep says so.
func (l *looks) put(h v1.Hash, as string, x look, keep bool) error {
	key := lookKey(h, as)
	l.mu.Lock()
	l.done[key] = x
	l.mu.Unlock()
	if !keep {
		return nil
	}
	return l.cache.put("looks", key, x)
}

// looking sees the bytes of one blob go by. It belongs to one goroutine, and
// ends with done or stop.
type looking struct {
	out  look
	n    int64 // bytes that went by
	most int64 // bytes that are scanned of a raw blob; -1: all

	head []byte // the first bytes of a raw blob, while it is not clear what it is
	scan *licence.Scanner
	pipe *io.PipeWriter // into the goroutine that unpacks a layer
	end  chan error
}

// newLooking begins a blob. most is where the tensors of a raw blob begin, or
// -1: then a blob that begins like weights is not scanned, and done says so.
func newLooking(ctx context.Context, as string, most int64) *looking {
	l := &looking{most: most}
	l.scan = licence.NewScanner(licence.Place{}, l.found)
	if as != asLayer {
		return l
	}
	r, w := io.Pipe()
	l.pipe, l.end = w, make(chan error, 1)
	go func() {
		seen, err := sbom.ReadLayer(ctx, r, func(e layer.Entry) io.Writer {
			l.scan.Reset(licence.Place{File: legible.Line(e.Path)})
			return l.scan
		})
		l.out.Layer = &seen
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what follows a packed layer's end
		}
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		l.end <- err
	}()
	return l
}

// found keeps what the scan tells. A blob with more than is kept is refused,
// whatever the recipe allows.
func (l *looking) found(f licence.Finding) {
	if len(l.out.Found) == licence.MaxFindings {
		l.out.More = true
		return
	}
	l.out.Found = append(l.out.Found, found{f.File, f.Rule, f.Offset, f.Fingerprint})
}

// brokenLayer says that a layer can't be unpacked, here or on any host.
type brokenLayer struct{ error }

func (b brokenLayer) Unwrap() error { return b.error }

func (l *looking) Write(p []byte) (int, error) {
	l.n += int64(len(p))
	if l.pipe != nil {
		if n, err := l.pipe.Write(p); err != nil {
			return n, permanent{brokenLayer{err}}
		}
		return len(p), nil
	}
	q := p
	if l.most >= 0 {
		q = p[:max(0, min(int64(len(p)), l.most-(l.n-int64(len(p)))))]
	} else if len(l.head) < model.SniffLen {
		l.head = append(l.head, p[:min(len(p), model.SniffLen-len(l.head))]...)
	}
	if l.most < 0 && model.MayBeWeights(l.head) {
		return len(p), nil
	}
	l.scan.Write(q)
	return len(p), nil
}

// done returns the look. ok is false for a stream that begins like weights:
// only its header can tell what of it to scan.
func (l *looking) done() (x look, ok bool, err error) {
	if l.pipe != nil {
		l.pipe.Close()
		if err := <-l.end; err != nil {
			return look{}, false, brokenLayer{err}
		}
		return l.out, true, nil
	}
	l.scan.Close()
	return l.out, l.most >= 0 || !model.MayBeWeights(l.head), nil
}

// stop ends a look at a blob that did not come whole.
func (l *looking) stop() {
	if l.pipe != nil {
		l.pipe.CloseWithError(io.ErrUnexpectedEOF)
		<-l.end
	}
}

// store puts into the work store what r gives, and looks into it in the same
// pass unless that was done before.
func (j *job) store(ctx context.Context, d v1.Descriptor, size int64, r io.Reader) error {
	as := lookAs(j.item.Kind, d)
	if _, known := j.pool.looks.get(d.Digest, as); known || as == asText || as == asImage {
		return j.pool.store.Put(ctx, d.Digest, size, r)
	}
	l := newLooking(ctx, as, -1)
	if err := j.pool.store.Put(ctx, d.Digest, size, io.TeeReader(r, l)); err != nil {
		l.stop()
		return err
	}
	if l.n == 0 { // it was there: r was not read
		l.stop()
		return nil
	}
	x, ok, err := l.done()
	if err != nil || !ok {
		return err
	}
	return j.pool.looks.put(d.Digest, as, x, true)
}

// lookAt reads a blob of the pool that nobody has looked into. A file of
// somebody else's layout is summed in the same pass, so that it need not be
// summed when it is written.
func (b *build) lookAt(ctx context.Context, d v1.Descriptor, as, what string) (err error) {
	f, err := b.pool.open(d.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	local, ok := b.pool.get(d.Digest)
	st, err := stampOf(f)
	if err != nil {
		return err
	}
	r := reading{pool: b.pool, sum: ok && local.stamp == stamp{}, as: as}
	task := b.Progress.Start("look into "+what, d.Size)
	h, err := r.read(ctx, f, d.Size, task)
	if err == nil && r.sum {
		local.stamp = st
		if now, e := stampOf(f); e != nil || now != st || h != d.Digest {
			err = errors.Join(e, fmt.Errorf("%s is not the blob %s: its digest is %s: it is damaged, or was changed while it was read", f.Name(), d.Digest, h))
		}
		b.pool.addLocal(d.Digest, local)
	}
	task.Done(err)
	if err != nil {
		return err
	}
	return b.pool.looks.put(d.Digest, as, r.out, true)
}

// tensors is where a raw blob's tensors begin, or its size.
func tensors(f *os.File, size int64) int64 {
	if at, ok := model.TensorsAt(f, size); ok {
		return at
	}
	return size
}
