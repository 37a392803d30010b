package registry

import (
	"os"
	"os/exec"
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

// TestConformance runs the whole suite, as version 1.1 has it and with what
// the next version has, too.
func TestConformance(t *testing.T) {
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			s := pushRack(t, Options{})
			suite(t, s.host(), "OCI_VERSION="+version)
		})
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
	for h := range ok(look(s.Store))(t).repos["conformance/repo1"].blobs {
		blobs = append(blobs, h.String())
	}
	suite(t, s.host(), "OCI_VERSION=1.1",
		"OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
		"OCI_API_BLOBS_DIGEST_HEADER=true",
		"OCI_RO_DATA_TAGS="+strings.Join(names, " "), "OCI_RO_DATA_MANIFESTS="+strings.Join(digests, " "),
		"OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "), "OCI_RO_DATA_REFERRERS="+img.Digest.String())
}
