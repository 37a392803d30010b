package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxManifest is the size that the specification tells registries to accept.
const maxManifest = 4 << 20

// document is what the registry has to know of a manifest or an index.
type document struct {
	mediaType types.MediaType
	parts     []v1.Descriptor // configuration and layers
	lower     []v1.Descriptor // an index's manifests
	subject   *v1.Descriptor
	notes     map[string]string
	kind      string // artifact type
}

// forms are the media types that may be pushed; true for those that list
// manifests.
var forms = map[types.MediaType]bool{
	types.OCIManifestSchema1:    false,
	types.DockerManifestSchema2: false,
	types.OCIImageIndex:         true,
	types.DockerManifestList:    true,
}

// fields are the names that a reader acts on. Go reads "Layers" as "layers"
// and other languages don't, so a document may spell them in this way only.
var fields = []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations", "digest", "size", "urls"}

// parseDocument is the one way from bytes to a document. Fields that it
// doesn't know are allowed by the specification; what two readers could
// understand differently is refused.
func parseDocument(b []byte, mediaType types.MediaType) (*document, error) {
	if err := unambiguous(b); err != nil {
		return nil, err
	}
	var j struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     types.MediaType   `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        *v1.Descriptor    `json:"config"`
		Layers        []v1.Descriptor   `json:"layers"`
		Manifests     []v1.Descriptor   `json:"manifests"`
		Subject       *v1.Descriptor    `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, err
	}
	if j.MediaType == "" {
		j.MediaType = mediaType
	}
	// A document that reads as both kinds is how CVE-2021-41190 tricks one
	// client into another image than the next.
	index, known := forms[j.MediaType]
	switch {
	case j.SchemaVersion != 2:
		return nil, fmt.Errorf("schemaVersion is %d, want 2", j.SchemaVersion)
	case j.MediaType != mediaType:
		return nil, fmt.Errorf("its media type and its content don't agree: it says %.80q and came as %.80q", j.MediaType, mediaType)
	case j.Manifests != nil && (j.Layers != nil || j.Config != nil):
		return nil, errors.New("its media type and its content don't agree: it lists manifests and layers, want one of them")
	case known && index == (j.Config != nil || j.Layers != nil), known && !index && j.Config == nil:
		return nil, fmt.Errorf("its media type and its content don't agree: it came as %s", mediaType)
	}
	d := &document{mediaType: mediaType, parts: j.Layers, lower: j.Manifests, subject: j.Subject, notes: j.Annotations, kind: j.ArtifactType}
	if j.Config != nil {
		d.parts = append(slices.Clone(j.Layers), *j.Config)
		if d.kind == "" {
			d.kind = string(j.Config.MediaType) // distribution-spec, "Listing referrers"
		}
	}
	return d, d.check()
}

func (d *document) check() error {
	for _, p := range slices.Concat(d.parts, d.lower) {
		if p.Size < 0 {
			return fmt.Errorf("descriptor of %s has size %d, want 0 or more", p.Digest, p.Size)
		}
	}
	return nil
}

// elsewhere says whether a layer is one that registries need not hold.
func elsewhere(d v1.Descriptor) bool {
	return len(d.URLs) > 0 && !d.MediaType.IsDistributable()
}

// unambiguous says whether b is one JSON value without repeated names and with
// the names that matter spelled exactly.
func unambiguous(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := walk(d, ""); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it goes on after its end")
	}
	return nil
}

// walk reads one value, which stands under the name in.
func walk(d *json.Decoder, in string) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('{'):
		return walkObject(d, in)
	case json.Delim('['):
		for d.More() {
			if err := walk(d, in); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func walkObject(d *json.Decoder, in string) error {
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		k, _ := t.(string) // the decoder lets nothing else be a name
		if seen[k] {
			return fmt.Errorf("it has %.80q twice in one object", k)
		}
		seen[k] = true
		if in != "annotations" {
			if i := slices.IndexFunc(fields, func(f string) bool { return strings.EqualFold(f, k) }); i >= 0 && fields[i] != k {
				return fmt.Errorf("it has the field %.80q, want %q", k, fields[i])
			}
		}
		if err := walk(d, k); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}
