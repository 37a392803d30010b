package registry

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// suite runs the conformance suite of the distribution-spec, of which
// OCI_CONFORMANCE names the binary (folder conformance of the repository
// github.com/opencontainers/distribution-spec: go build -o conformance .), and
// returns what it printed.
func suite(t *testing.T, host string, env ...string) string {
	t.Helper()
	bin := os.Getenv("OCI_CONFORMANCE")
	if bin == "" {
		t.Skip("OCI_CONFORMANCE is not set: it must name the suite's binary, which isn't a Go module that can be required")
	}
	cmd := exec.Command(bin)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+host, "OCI_TLS=disabled", "OCI_REPO1=conformance/repo1", "OCI_RESULTS_DIR="+cmd.Dir)
	cmd.Env = append(cmd.Env, env...)
	// Its status says nothing: after a read-only run the suite of July 2026
	// panics while it writes its YAML report. The summary comes before that.
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if strings.Contains(string(out), "failed test") || !strings.Contains(string(out), "OCI Conformance Result: Pass") {
		t.Errorf("suite: %v", err)
	}
	return string(out)
}

// TestConformance runs the whole suite: as version 1.1 has it, with what the
// next version has, too, and with a password and manifests that are not whole.
func TestConformance(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	must(t, os.WriteFile(users, []byte(cheap(t, "op", "op's password")), 0o600))
	for name, c := range map[string]struct {
		o   Options
		env []string
	}{
		"1.1": {Options{}, []string{"OCI_VERSION=1.1"}},
		"dev": {Options{}, []string{"OCI_VERSION=dev"}},
		"login, sparse": {
			Options{Sparse: true, Users: ok(OpenUsers(users))(t), Rules: []Rule{{"user:op", "conformance/**", []Right{Pull, Push, Delete}}}},
			[]string{"OCI_VERSION=dev", "OCI_DATA_SPARSE=true", "OCI_USERNAME=op", "OCI_PASSWORD=op's password"},
		},
	} {
		t.Run(name, func(t *testing.T) { suite(t, pushRack(t, c.o).host(), c.env...) })
	}
}

// TestConformanceReadOnly runs what the suite has for a registry that can't be
// pushed to.
func TestConformanceReadOnly(t *testing.T) {
	s := newRack(t)
	rnd := ok(random.Image(10_000, 2))(t)
	oci := mutate.ConfigMediaType(mutate.MediaType(rnd, types.OCIManifestSchema1), types.OCIConfigJSON)
	img := s.image(t, oci) // the suite accepts OCI's media types only
	idx := s.index(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: oci}))
	art := s.file(t, "file", []byte("content"), nil)
	sig := s.file(t, "signature", []byte("sig"), &img)
	tags := map[string]v1.Descriptor{"img": img, "idx": idx, "art": art, "sig": sig}
	var names, digests []string
	for tag, d := range tags {
		must(t, s.Tag("conformance/repo1:"+tag, d))
		names, digests = append(names, tag), append(digests, d.Digest.String())
	}
	var blobs []string
	for h := range ok(look(storeSource{s.Store}))(t).repos["conformance/repo1"].blobs {
		blobs = append(blobs, h.String())
	}
	suite(t, s.host(), "OCI_VERSION=1.1",
		"OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
		"OCI_API_BLOBS_DIGEST_HEADER=true",
		"OCI_RO_DATA_TAGS="+strings.Join(names, " "), "OCI_RO_DATA_MANIFESTS="+strings.Join(digests, " "),
		"OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "), "OCI_RO_DATA_REFERRERS="+img.Digest.String())
}
