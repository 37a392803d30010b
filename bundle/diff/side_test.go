package diff

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

// TestWide: indexes that name each other over and over are read once each.
func TestWide(t *testing.T) {
	st := must(content.Open(filepath.Join(t.TempDir(), "store")))(t)
	below := v1.Descriptor{MediaType: "application/octet-stream", Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}
	for range 4 {
		x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		for range 1000 {
			x.Manifests = append(x.Manifests, below)
		}
		b := must(json.Marshal(x))(t)
		h, n, _ := v1.SHA256(bytes.NewReader(b))
		if err := st.Put(t.Context(), h, n, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		below = v1.Descriptor{MediaType: types.OCIImageIndex, Digest: h, Size: n}
	}
	if err := st.Tag("wide:1", below); err != nil {
		t.Fatal(err)
	}
	s := must(Host(t.Context(), "host", st, Release{}))(t)
	visits := 0
	if err := s.walk(t.Context(), below, func(v1.Descriptor) error { visits++; return nil }); err != nil || visits > 4001 {
		t.Errorf("%d visits, %v", visits, err)
	}
}

// TestVersions: each kind of package has its own order, and none is made up.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ kind, a, b, want string }{
		{"deb", "1:1.0-1", "2.0-1", Downgraded},
		{"deb", "1.0~rc1", "1.0", Upgraded},
		{"golang", "v1.9.0", "v1.10.0", Upgraded},
		{"golang", "(devel)", "v1.0.0", Changed},
		{"npm", "2.0.0", "2.0.0-rc.1", Downgraded},
		{"pypi", "3.9", "3.10", Upgraded},
		{"pypi", "1.0rc1", "1.0", Changed},
		{"apk", "1.36.1-r9", "1.36.1-r10", Upgraded},
		{"apk", "1.2_git1", "1.3", Changed},
		{"rpm", "1", "2", Changed},
	} {
		if got := changed(c.kind, []string{c.a}, []string{c.b}); got != c.want {
			t.Errorf("%s %s to %s: %s, want %s", c.kind, c.a, c.b, got, c.want)
		}
	}
	if got := changed("npm", []string{"1.0.0", "2.0.0"}, []string{"2.0.0"}); got != Changed {
		t.Errorf("one of two versions: %s", got)
	}
}
