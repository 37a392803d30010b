package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The artifacts that we make. Model types: CNCF ModelPack model-spec v0.0.7,
// specs-go/v1; the empty config: OCI image-spec 1.1, manifest.md.
const (
	// FileArtifact is the artifact type of kinds file and policy.
	FileArtifact = "application/vnd.clawbox.file.v1"

	// titleNote holds a file's name.
	titleNote = "org.opencontainers.image.title"

	modelConfig = "application/vnd.cncf.model.config.v1+json"

	emptyConfig = "application/vnd.oci.empty.v1+json"
	rawLayer    = "application/octet-stream"
)

// artifact stores a manifest with the given config and layers.
func (p *pool) artifact(ctx context.Context, kind string, config v1.Descriptor, layers []v1.Descriptor) (v1.Descriptor, error) {
	d, err := p.putJSON(ctx, types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: kind, Config: config, Layers: layers,
	})
	d.ArtifactType = kind
	return d, err
}

// fileArtifact wraps one blob.
func (j *job) fileArtifact(ctx context.Context, h v1.Hash, size int64) (fetched, error) {
	config, err := j.pool.put(ctx, emptyConfig, []byte("{}"))
	if err != nil {
		return fetched{}, err
	}
	root, err := j.pool.artifact(ctx, FileArtifact, config, []v1.Descriptor{{
		MediaType: rawLayer, Digest: h, Size: size, Annotations: map[string]string{titleNote: path.Base(j.item.Path)},
	}})
	return fetched{root: root, resolved: h}, err
}

// file takes a local file. It is hashed now, and again when it is written.
func (j *job) file(ctx context.Context) (fetched, error) {
	f, err := os.Open(j.recipe.path(j.arg))
	if err != nil {
		return fetched{}, err
	}
	defer f.Close()
	l, h, err := j.hash(ctx, f, j.item.Name)
	if err != nil {
		return fetched{}, err
	}
	if want := j.item.SHA256; want != "" && want != h.Hex && !j.pool.stands(h) {
		return fetched{}, fmt.Errorf("its sha256 is %s, the recipe wants %s: it is another file than the one that was pinned", h.Hex, want)
	}
	j.pool.addLocal(h, l)
	return j.fileArtifact(ctx, h, l.size)
}

func describeMode(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file (" + m.Type().String() + ")"
}

// counted reports what is read, and stops when its context ends.
type counted struct {
	ctx  context.Context
	r    io.Reader
	task Task
}

func (c counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.task.Add(int64(n))
	return n, err
}

// headerTimeout is how long a server may take to begin an answer.
const headerTimeout = 2 * time.Minute

// patient is t with a bound on the wait for an answer's head.
func patient(t http.RoundTripper) http.RoundTripper {
	d := t.(*http.Transport).Clone() // both callers' is one
	d.ResponseHeaderTimeout = headerTimeout
	return d
}

// client follows redirects to https only.
var client = &http.Client{Transport: patient(http.DefaultTransport), CheckRedirect: func(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" {
		return permanent{errors.New("redirected away from https")}
	}
	if len(via) > 10 {
		return permanent{errors.New("more than 10 redirects")}
	}
	return nil
}}

// https downloads a file whose sha256 the recipe gives.
func (j *job) https(ctx context.Context) (fetched, error) {
	h := v1.Hash{Algorithm: "sha256", Hex: j.item.SHA256}
	if n, err := j.pool.store.Stat(h); err == nil {
		return j.fileArtifact(ctx, h, n)
	}
	err := retry(ctx, func() error { return j.download(ctx, h) })
	if err != nil {
		return fetched{}, err
	}
	n, err := j.pool.store.Stat(h)
	if err != nil {
		return fetched{}, err
	}
	return j.fileArtifact(ctx, h, n)
}

func (j *job) download(ctx context.Context, h v1.Hash) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+j.arg, nil)
	if err != nil {
		return permanent{err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := fmt.Errorf("the server answers %s", strings.TrimSpace(resp.Status))
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return permanent{err}
		}
		return err
	}
	most, err := j.room()
	if err != nil {
		return err
	}
	if resp.ContentLength > most {
		return permanent{tooLong(resp.ContentLength, most)}
	}
	task := j.progress.Start("get "+j.item.Name, resp.ContentLength)
	err = j.store(ctx, v1.Descriptor{Digest: h}, resp.ContentLength, counted{ctx, &bounded{resp.Body, 0, most}, task})
	task.Done(err)
	return err
}

// maxDownload bounds a file from a web server, in bytes: the recipe has its
// digest, and nobody says how long it is.
var maxDownload int64 = 64 << 30

// room is how long a download may be: an eighth of the work store's free space
// stays free, whatever a server sends.
func (j *job) room() (int64, error) {
	have, err := free(j.pool.store.Dir())
	return min(maxDownload, have-have/8), err
}

func tooLong(n, most int64) error {
	return fmt.Errorf("the server sends %s or more, want at most %s, for the sum that is pinned and the room in the work store: see whether it is the right file; get a larger one yourself and name it by its path (file:PATH)", Size(n), Size(most))
}

// bounded is a reader that gives no more than most bytes; more are an error.
type bounded struct {
	r       io.Reader
	n, most int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n += int64(n); b.n > b.most {
		return 0, permanent{tooLong(b.n, b.most)}
	}
	return n, err
}
