package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// weights writes a safetensors file of size bytes, whose one tensor nothing can
// compress; the same in each run.
func weights(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	const head = 128 // with the 8 bytes of its own length
	n := size - head
	text := fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, n, n)
	lead := binary.LittleEndian.AppendUint64(nil, head-8)
	_, err = fmt.Fprintf(f, "%s%-*s", lead, head-8, text)
	if err == nil {
		_, err = io.CopyN(f, rand.NewChaCha8([32]byte{'b', 'e', 'n', 'c', 'h'}), n)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// imageSetup is a set of images in a registry on loopback, and an empty
// registry that a tool may mirror to.
type imageSetup struct {
	refs          []string
	named, unique int64 // bytes of all layers, and of each distinct one once
	target        string
	servers       []*http.Server
}

// imageCount images share the layers of one real image: image i has the first
// of them up to a depth that varies, and one layer of its own of ownLayer bytes.
const (
	imageCount = 8
	ownLayer   = 16 << 20
)

func newImageSet(dir, path string) (*imageSetup, error) {
	base, err := oneImage(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	layers, err := base.Layers()
	if err != nil {
		return nil, err
	}
	s := &imageSetup{}
	source, err := s.serve(filepath.Join(dir, "source"))
	if err != nil {
		return nil, err
	}
	if s.target, err = s.serve(filepath.Join(dir, "target")); err != nil {
		s.close()
		return nil, err
	}
	seen := map[v1.Hash]bool{}
	src := rand.NewChaCha8([32]byte{'l', 'a', 'y', 'e', 'r'})
	for i := range imageCount {
		own, err := packed(src)
		if err != nil {
			s.close()
			return nil, err
		}
		ls := append([]v1.Layer{}, layers[:len(layers)-i%len(layers)]...)
		img, err := image(append(ls, static.NewLayer(own, types.OCIUncompressedLayer)))
		if err != nil {
			s.close()
			return nil, err
		}
		ref := fmt.Sprintf("%s/bench/image-%d:1.0", source, i)
		if err := errors.Join(crane.Push(img, ref, crane.Insecure), s.count(img, seen)); err != nil {
			s.close()
			return nil, err
		}
		s.refs = append(s.refs, ref)
	}
	return s, nil
}

// packed is a layer with one file of ownLayer bytes.
func packed(src io.Reader) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "own", Mode: 0o644, Size: ownLayer})
	if err == nil {
		_, err = io.CopyN(w, src, ownLayer)
	}
	return b.Bytes(), errors.Join(err, w.Close())
}

func image(ls []v1.Layer) (v1.Image, error) {
	img, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, ls...)
}

// count adds an image's layers.
func (s *imageSetup) count(img v1.Image, seen map[v1.Hash]bool) error {
	ls, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range ls {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		n, err := l.Size()
		if err != nil {
			return err
		}
		s.named += n
		if !seen[h] {
			seen[h] = true
			s.unique += n
		}
	}
	return nil
}

// serve runs a registry that keeps its blobs in dir.
func (s *imageSetup) serve(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)), registry.Logger(log.New(io.Discard, "", 0)))}
	s.servers = append(s.servers, srv)
	go srv.Serve(l)
	return l.Addr().String(), nil
}

func (s *imageSetup) close() {
	for _, srv := range s.servers {
		srv.Close()
	}
}

func oneImage(path string) (v1.Image, error) {
	p, err := layout.FromPath(path)
	if err != nil {
		return nil, err
	}
	idx, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.MediaType.IsImage() {
			return idx.Image(d.Digest)
		}
	}
	return nil, errors.New("no image in it")
}
