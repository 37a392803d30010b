package sbom

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/licence"
)

// Media types, which are the artifact types of what Artifact makes.
const (
	CycloneDXType = "application/vnd.cyclonedx+json"
	SPDXType      = "application/spdx+json"
)

// Document is an image's or a bundle's software, ready to be written.
type Document struct {
	Name    string
	Version string
	Digest  v1.Hash   // of the image, or of the release
	Created time.Time // of the release
	Parts   []Part    // what it holds, in the release's order
}

// Part is an item: an image with its packages, a model, a file, a policy or a
// set of packages.
type Part struct {
	Name    string
	Version string
	Kind    string // image, model, file, policy, debs
	Digest  v1.Hash
	Licence string // SPDX expression; empty: not stated
	Image   Image  // of kinds image and debs
}

// complete says whether everything could be read.
func (d Document) complete() bool {
	for _, p := range d.Parts {
		if len(p.Image.Unread) > 0 {
			return false
		}
	}
	return true
}

// id is a short name for something within the document, which depends on what
// it is and not on its place.
func id(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:10])
}

// uuid makes a version 8 UUID (RFC 9562) of what the document is about.
func (d Document) uuid() string {
	h := sha256.Sum256([]byte(strings.Join([]string{"clawbox sbom", d.Name, d.Version, d.Digest.String(), d.created()}, "\x00")))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func (d Document) created() string { return d.Created.UTC().Truncate(time.Second).Format(time.RFC3339) }

// PURL is the package's URL (package-url/purl-spec).
func (p Package) PURL(os OS) string {
	name, space := p.Name, ""
	var q []string
	switch p.Type {
	case "deb", "apk":
		if space = os.ID; space == "" {
			space = map[string]string{"deb": "debian", "apk": "alpine"}[p.Type]
		}
		if p.Arch != "" {
			q = append(q, "arch="+url.QueryEscape(p.Arch))
		}
		if os.ID != "" && os.Version != "" {
			q = append(q, "distro="+url.QueryEscape(os.ID+"-"+os.Version))
		}
	case "pypi":
		name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	default:
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			space, name = name[:i], name[i+1:]
		}
	}
	s := "pkg:" + p.Type + "/"
	for part := range strings.SplitSeq(space, "/") {
		if part != "" {
			s += escape(part) + "/"
		}
	}
	s += escape(name) + "@" + escape(p.Version)
	if len(q) > 0 {
		s += "?" + strings.Join(q, "&")
	}
	return s
}

// escape is percent-encoding as package URLs want it: "@" too, ":" not.
func escape(s string) string {
	return strings.NewReplacer("+", "%2B", "@", "%40", "%3A", ":").Replace(url.PathEscape(s))
}

// purl of an item: images and models are OCI artifacts here.
func (p Part) purl() string {
	if p.Digest == (v1.Hash{}) {
		return ""
	}
	if p.Kind == "image" || p.Kind == "model" {
		return "pkg:oci/" + escape(p.Name) + "@" + strings.ReplaceAll(p.Digest.String(), ":", "%3A")
	}
	return ""
}

// expression returns a licence if it is an SPDX expression.
func expression(s string) (string, bool) { return s, s != "" && licence.Check(s) == nil }

// Artifact wraps a document as an OCI artifact that refers to what it describes,
// so that registries list it among the subject's referrers. It returns the
// manifest's bytes and its descriptor; config is the two bytes "{}".
func Artifact(mediaType, name string, doc []byte, subject *v1.Descriptor) ([]byte, v1.Descriptor, error) {
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: mediaType,
		Config:  describe("application/vnd.oci.empty.v1+json", []byte("{}")),
		Layers:  []v1.Descriptor{describe(types.MediaType(mediaType), doc)},
		Subject: subject,
	}
	m.Layers[0].Annotations = map[string]string{"org.opencontainers.image.title": name}
	raw, err := json.Marshal(m)
	d := describe(types.OCIManifestSchema1, raw)
	d.ArtifactType = mediaType
	return raw, d, err
}

func describe(mt types.MediaType, b []byte) v1.Descriptor {
	h, n, _ := v1.SHA256(bytes.NewReader(b)) // a bytes.Reader has no errors
	return v1.Descriptor{MediaType: mt, Digest: h, Size: n}
}

func sorted(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }
