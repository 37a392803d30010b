package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/clawbox/clawbox/bundle/deb"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// DebsArtifact is the artifact type of kind debs: one layer for each package,
// titled by its file's name.
const DebsArtifact = "application/vnd.clawbox.debs.v1"

// debLayer is IANA's type for a .deb.
const debLayer = "application/vnd.debian.binary-package"

// Packages says which Debian packages are wanted for which clean target. Paths
// in it are relative to its file.
type Packages struct {
	APIVersion   string       `yaml:"apiVersion"` // clawbox.io/v1
	Kind         string       `yaml:"kind"`       // Packages
	Architecture string       `yaml:"architecture"`
	Kernel       string       `yaml:"kernel,omitempty"`    // fills {kernel} in packages: uname -r of the target
	Branch       string       `yaml:"branch,omitempty"`    // fills {branch}: the driver's
	Installed    string       `yaml:"installed,omitempty"` // what a clean target has; none: nothing
	Recommends   bool         `yaml:"recommends,omitempty"`
	Sources      []DebArchive `yaml:"sources"`
	Packages     []string     `yaml:"packages"`

	file string
}

// DebArchive is one line of sources.list, with the keys that it must be signed by.
type DebArchive struct {
	URI        string   `yaml:"uri"`
	Suite      string   `yaml:"suite"`
	Components []string `yaml:"components,omitempty"`
	Keyring    string   `yaml:"keyring"`

	Line int64 `yaml:"-"`
}

// LoadPackages reads a file of kind Packages strictly.
func LoadPackages(file string) (Packages, error) {
	src, err := readSmall(file, maxSource)
	if err != nil {
		return Packages{}, fmt.Errorf("packages: %w", err)
	}
	s := Packages{file: file}
	if err := (strict{file}).parse(src, &s); err != nil {
		return Packages{}, err
	}
	if s.APIVersion != apiVersion || s.Kind != "Packages" {
		return s, &SyntaxError{file, 1, fmt.Sprintf("apiVersion %q and kind %q", s.APIVersion, s.Kind), apiVersion + " and Packages", ""}
	}
	if s.Architecture == "" || len(s.Sources) == 0 || len(s.Packages) == 0 {
		return s, &SyntaxError{file, 1, "no architecture, no sources or no packages", "each of them", ""}
	}
	for _, a := range s.Sources {
		if a.URI == "" || a.Suite == "" || a.Keyring == "" {
			return s, &SyntaxError{file, int(a.Line), "an archive without uri, suite or keyring", "all three", "the keyring must come another way than the archive"}
		}
	}
	return s, nil
}

func (s Packages) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(s.file), p)
}

// Plan reads the archives, whose signatures it checks, and resolves.
func (s Packages) Plan(ctx context.Context) (deb.Plan, error) {
	names, err := deb.Expand(s.Packages, s.Kernel, s.Branch)
	if err != nil {
		return deb.Plan{}, &SyntaxError{s.file, 1, err.Error(), "values for what the names of packages leave open", ""}
	}
	r := deb.Request{Packages: names, Recommends: s.Recommends}
	if s.Installed != "" {
		f, err := os.Open(s.path(s.Installed))
		if err != nil {
			return deb.Plan{}, err
		}
		defer f.Close()
		if r.Installed, err = deb.ReadManifest(f); err != nil {
			return deb.Plan{}, fmt.Errorf("%s: %w", s.Installed, err)
		}
	}
	x := deb.NewIndex(s.Architecture)
	for _, a := range s.Sources {
		keys, err := os.ReadFile(s.path(a.Keyring))
		if err != nil {
			return deb.Plan{}, err
		}
		if err := x.Read(ctx, deb.Source{URI: a.URI, Suite: a.Suite, Components: a.Components, Keys: keys}, FetchDeb); err != nil {
			return deb.Plan{}, err
		}
	}
	return x.Closure(r)
}

// digest stands for all that decides about the closure on our side.
func (s Packages) digest() (v1.Hash, error) {
	files := []string{s.file}
	for _, a := range s.Sources {
		files = append(files, s.path(a.Keyring))
	}
	if s.Installed != "" {
		files = append(files, s.path(s.Installed))
	}
	h := sha256.New()
	for _, p := range files {
		if err := hashFile(h, p); err != nil {
			return v1.Hash{}, err
		}
	}
	return manifest.Sum(h.Sum(nil)).Digest(), nil
}

// hashFile adds the sum of a file, so that no two lists of files add up to the
// same.
func hashFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	one := sha256.New()
	if _, err := io.Copy(one, f); err != nil {
		return err
	}
	h.Write(one.Sum(nil))
	return nil
}

// debClient gives up on a server that says nothing; bodies may take long.
var debClient = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute}}

// FetchDeb is a deb.Fetch. What it brings is held to a signed digest, so http
// will do.
func FetchDeb(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, permanent{err}
	}
	res, err := debClient.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case res.StatusCode == http.StatusOK:
		return res.Body, nil
	case res.StatusCode == http.StatusNotFound:
		return nil, permanent{errors.Join(fs.ErrNotExist, res.Body.Close())}
	}
	err = fmt.Errorf("the server answers %s", res.Status)
	if res.StatusCode < 500 && res.StatusCode != http.StatusTooManyRequests {
		err = permanent{err}
	}
	return nil, errors.Join(err, res.Body.Close())
}

// debs brings a closure. With a pin the archives are not asked: the lock has
// each package's digest.
func (j *job) debs(ctx context.Context) (fetched, error) {
	s, err := LoadPackages(j.recipe.path(j.arg))
	if err != nil {
		return fetched{}, err
	}
	out := fetched{}
	if out.resolved, err = s.digest(); err != nil {
		return fetched{}, err
	}
	if j.pin == nil {
		task := j.progress.Start("resolve "+j.item.Name, -1)
		out.packages, err = s.pins(ctx)
		task.Done(err)
	} else if out.packages = j.pin.Packages; out.resolved.String() != j.pin.Resolved {
		return out, nil // job.fetch says so
	}
	if err != nil {
		return fetched{}, err
	}
	out.root, err = j.debArtifact(ctx, out.packages)
	return out, err
}

// pins resolves into what a lock holds.
func (s Packages) pins(ctx context.Context) (out []LockPackage, err error) {
	p, err := s.Plan(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range p.Files {
		out = append(out, LockPackage{Name: f.Name, Version: f.Version, Arch: f.Arch, URL: f.URL, SHA256: f.SHA256, Size: f.Size})
	}
	if len(out) == 0 {
		return nil, errors.New("the target has all of these packages already: leave the item out")
	}
	return out, nil
}

// debArtifact brings the packages into the work store and lists them.
func (j *job) debArtifact(ctx context.Context, ps []LockPackage) (v1.Descriptor, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(pulls)
	var layers []v1.Descriptor
	seen := map[string]bool{}
	for _, p := range ps {
		d := v1.Descriptor{
			MediaType: debLayer, Digest: v1.Hash{Algorithm: "sha256", Hex: p.SHA256}, Size: p.Size,
			Annotations: map[string]string{titleNote: path.Base(p.URL)},
		}
		name := path.Base(p.URL)
		if err := manifest.CheckPath(name); err != nil || seen[name] {
			return v1.Descriptor{}, errors.Join(err, fmt.Errorf("package %s: want a file name of its own in %s", p.Name, p.URL))
		}
		seen[name] = true
		layers = append(layers, d)
		g.Go(func() error { return retry(gctx, func() error { return j.pullDeb(gctx, p.URL, d) }) })
	}
	if err := g.Wait(); err != nil {
		return v1.Descriptor{}, err
	}
	config, err := j.pool.put(ctx, emptyConfig, []byte("{}"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return j.pool.artifact(ctx, DebsArtifact, config, layers)
}

func (j *job) pullDeb(ctx context.Context, url string, d v1.Descriptor) error {
	if n, err := j.pool.stat(d.Digest); err == nil && n == d.Size {
		return nil
	}
	in, err := FetchDeb(ctx, url)
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	defer in.Close()
	task := j.progress.Start("get "+path.Base(url), d.Size)
	err = j.store(ctx, d, d.Size, counted{ctx, in, task})
	task.Done(err)
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}
