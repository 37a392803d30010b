package bundle

import (
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/sbom"
)

// bomForms are the documents that a build makes of each image and of the whole.
var bomForms = []struct {
	name, media, file string
	write             func(sbom.Document) ([]byte, error)
}{
	{"cyclonedx", sbom.CycloneDXType, "sbom.cdx.json", sbom.Document.CycloneDX},
	{"spdx", sbom.SPDXType, "sbom.spdx.json", sbom.Document.SPDX},
}

// bomLicence is the licence of SPDX documents (SPDX 2.3, clause 6.2), and ours of
// both.
const bomLicence = "CC0-1.0"

// boms lists the software of each image and of the whole, from what was seen
// while the layers were read. An image's lists refer to it (OCI referrers) and
// lie in its repository; those of the whole stand alone, as sbom/NAME/FORM:VERSION.
func (b *build) boms(items []manifest.Item) (out []manifest.Item, err error) {
	when, err := created(b.recipe, b.lock)
	if err != nil {
		return nil, err
	}
	whole := sbom.Document{Name: b.recipe.Metadata.Name, Version: b.recipe.Metadata.Version, Created: when}
	for i, it := range items {
		p := sbom.Part{Name: it.Name, Version: whole.Version, Kind: it.Kind, Digest: it.Descriptor.Digest, Licence: it.Licence}
		if it.Kind != "image" {
			p.Image.Packages = debPackages(b.items[i].packages)
			whole.Parts = append(whole.Parts, p)
			continue
		}
		doc := sbom.Document{Name: it.Name, Version: whole.Version, Digest: it.Descriptor.Digest, Created: when}
		if doc.Parts, err = b.imageParts(p, it); err != nil {
			return nil, fmt.Errorf("item %s: sbom: %w", it.Name, err)
		}
		whole.Parts = append(whole.Parts, doc.Parts...)
		made, err := b.putBoms(doc, it.Name, &it.Descriptor, func(_ string, h v1.Hash) string { return repository(it.Ref) + "@" + h.String() })
		if err != nil {
			return nil, fmt.Errorf("item %s: sbom: %w", it.Name, err)
		}
		out = append(out, made...)
	}
	made, err := b.putBoms(whole, "sbom", nil, func(form string, _ v1.Hash) string {
		return "sbom/" + whole.Name + "/" + form + ":" + strings.ReplaceAll(whole.Version, "+", "_") // tags have no "+"
	})
	if err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	return append(out, made...), nil
}

// repository is a reference without its tag or digest.
func repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		ref = ref[:i]
	}
	return ref
}

// imageParts puts the layers of each of an item's images together.
func (b *build) imageParts(p sbom.Part, it manifest.Item) (out []sbom.Part, err error) {
	found, err := sbom.Images(b.pool.open, it.Descriptor, func(d v1.Descriptor) (sbom.Seen, error) {
		l, ok := b.pool.looks.get(d.Digest, asLayer)
		if !ok || l.Layer == nil {
			return sbom.Seen{}, fmt.Errorf("layer %s was not looked into", d.Digest) // a fault of ours
		}
		return *l.Layer, nil
	})
	for _, f := range found {
		q := p
		q.Digest, q.Image = f.Digest, f.Image
		if len(found) > 1 {
			q.Name += " " + f.Platform
		}
		out = append(out, q)
	}
	return out, err
}

func debPackages(ps []LockPackage) (out []sbom.Package) {
	for _, p := range ps {
		out = append(out, sbom.Package{Type: "deb", Name: p.Name, Version: p.Version, Arch: p.Arch, Path: p.URL[strings.LastIndex(p.URL, "/")+1:]})
	}
	return out
}

// putBoms writes a document in both forms and describes them as items.
func (b *build) putBoms(doc sbom.Document, item string, subject *v1.Descriptor, ref func(form string, h v1.Hash) string) (out []manifest.Item, err error) {
	for _, f := range bomForms {
		text, err := f.write(doc)
		if err != nil {
			return nil, err
		}
		raw, root, err := sbom.Artifact(f.media, f.file, text, subject)
		if err != nil {
			return nil, err
		}
		for _, x := range [][]byte{raw, text, []byte("{}")} {
			if err := b.pool.make(x); err != nil {
				return nil, err
			}
		}
		out = append(out, manifest.Item{
			Name: item + "." + f.name, Kind: "sbom", Ref: ref(f.name, root.Digest), Descriptor: root,
			Licence: bomLicence, Redistributable: true,
		})
	}
	return out, nil
}
