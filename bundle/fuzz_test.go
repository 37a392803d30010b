package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// FuzzManifest: what an item's manifest says is walked without a crash, to a
// bounded depth, and only after its digest was right.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:00","size":1},"layers":[{"size":-1}]}`), false)
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:aa","size":2}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, index bool) {
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: manifest.Sum(sha256.Sum256(b)).Digest(), Size: int64(len(b))}
		if index {
			d.MediaType = types.OCIImageIndex
		}
		reads := 0
		walk(d, func(c v1.Descriptor) ([]byte, error) { // the same bytes again: as deep as it is allowed
			if reads++; reads > 4096 {
				return nil, errors.New("wide enough")
			}
			c.Digest, c.Size = d.Digest, d.Size
			return readManifest(bytes.NewReader(b), c)
		}, func(v1.Descriptor) error { return nil })
		if len(b) > 0 {
			d.Digest = manifest.Sum(sha256.Sum256(b[:len(b)-1])).Digest()
			if _, err := readManifest(bytes.NewReader(b), d); err == nil {
				t.Error("a manifest of another digest was read")
			}
		}
	})
}

// FuzzIndex: an index that its release names with the right sum is decoded to
// what encodes to the same bytes, and lies within the parts.
func FuzzIndex(f *testing.F) {
	out, _ := demo(f)
	r, _, err := manifest.Unverified(read(f, filepath.Join(out, topDir, noteFile)))
	must(f, err)
	f.Add(read(f, filepath.Join(out, topDir, indexFile)))
	f.Add([]byte(`{"format":"clawbox.io/index/v1","blobs":[]}` + "\n"))
	f.Add([]byte(`{"format":"clawbox.io/index/v1","blobs":[{"digest":"sha256:` + content.StartState.String() + `","size":1,"part":1}]}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := r
		r.Index = manifest.File{Size: int64(len(b)), SHA256: manifest.Sum(sha256.Sum256(b))}
		x, err := r.OpenIndex(b)
		if err != nil {
			return
		}
		if again, err := manifest.EncodeIndex(x); err != nil || !bytes.Equal(again, b) {
			t.Errorf("not canonical: %v", err)
		}
		for _, bl := range x.Blobs {
			for i := range bl.Len() {
				for _, s := range spans(r, bl.Source(i)) {
					if s.offset < 0 || s.offset+s.n > r.Parts[s.part-1].Payload() {
						t.Errorf("blob %s lies outside of its part", bl.Digest)
					}
				}
			}
		}
	})
}
