package installer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/content"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestPackagesInSlot: an item of kind debs becomes a folder of its packages, and
// one whose packages have other names than files may have is refused.
func TestPackagesInSlot(t *testing.T) {
	s, err := content.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) (v1.Hash, int64) {
		h, n, err := v1.SHA256(bytes.NewReader(b))
		if err == nil {
			err = s.Put(t.Context(), h, n, bytes.NewReader(b))
		}
		if err != nil {
			t.Fatal(err)
		}
		return h, n
	}
	item := func(names ...string) Item {
		h, size := put([]byte("{}"))
		m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: v1.Descriptor{Digest: h, Size: size}}
		for _, n := range names {
			h, size := put([]byte(n))
			m.Layers = append(m.Layers, v1.Descriptor{Digest: h, Size: size, Annotations: map[string]string{fileTitle: n}})
		}
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		h, _ = put(raw)
		return Item{Name: "gpu", Kind: "debs", Path: "debs/gpu", Digest: h}
	}
	root, keep := t.TempDir(), map[string]bool{}
	good := item("a_1~x+y_amd64.deb", "b_2.deb")
	want := []string{"debs/gpu/a_1~x+y_amd64.deb", "debs/gpu/b_2.deb"}
	for _, want := range [][]string{want, nil} { // the second time all is there
		if did, err := fillItem(s, good, root, keep); err != nil || !slices.Equal(did, want) {
			t.Errorf("made %v, %v; want %v", did, err, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(root, want[1]))
	if err != nil || string(b) != "b_2.deb" || !keep[filepath.Join(root, "debs/gpu")] {
		t.Errorf("got %q, %v; kept %v", b, err, keep)
	}
	for _, bad := range []string{"../../etc/x.deb", "a/b.deb", "", "..", "x\n"} {
		if _, err := fillItem(s, item("ok.deb", bad), root, keep); err == nil || !strings.Contains(err.Error(), "plain file name") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
