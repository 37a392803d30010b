package sbom

import (
	"bytes"
	"fmt"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// components maps kinds of items to CycloneDX's types of components.
var components = map[string]cdx.ComponentType{
	"image": cdx.ComponentTypeContainer, "model": cdx.ComponentTypeMachineLearningModel,
	"file": cdx.ComponentTypeFile, "policy": cdx.ComponentTypeData, "debs": cdx.ComponentTypeData,
}

// CycloneDX writes the document as CycloneDX 1.6 JSON.
func (d Document) CycloneDX() ([]byte, error) {
	b := cdx.NewBOM()
	b.SerialNumber = "urn:uuid:" + d.uuid()
	root := cdx.Component{BOMRef: "root", Type: cdx.ComponentTypeApplication, Name: d.Name, Version: d.Version, Hashes: hashes(d.Digest)}
	b.Metadata = &cdx.Metadata{
		Timestamp: d.created(), Component: &root,
		Tools: &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "clawbox"}}},
	}
	var parts []cdx.Component
	var all []string
	deps := []cdx.Dependency{}
	for _, p := range d.Parts {
		c, err := p.component()
		if err != nil {
			return nil, err
		}
		parts, all = append(parts, c), append(all, c.BOMRef)
		if c.Components != nil {
			var below []string
			for _, k := range *c.Components {
				below = append(below, k.BOMRef)
			}
			deps = append(deps, cdx.Dependency{Ref: c.BOMRef, Dependencies: &below})
		}
	}
	deps = append([]cdx.Dependency{{Ref: "root", Dependencies: &all}}, deps...)
	b.Components, b.Dependencies = &parts, &deps
	aggregate := cdx.CompositionAggregateComplete
	if !d.complete() {
		aggregate = cdx.CompositionAggregateIncomplete
	}
	b.Compositions = &[]cdx.Composition{{Aggregate: aggregate, Assemblies: &[]cdx.BOMReference{"root"}}}
	var out bytes.Buffer
	err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(b, cdx.SpecVersion1_6)
	return out.Bytes(), err
}

// hashes of an OCI artifact are its manifest's.
func hashes(h v1.Hash) *[]cdx.Hash {
	if h.Algorithm != "sha256" {
		return nil
	}
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: h.Hex}}
}

func (p Part) component() (cdx.Component, error) {
	kind, ok := components[p.Kind]
	if !ok {
		return cdx.Component{}, fmt.Errorf("sbom: item %s is of kind %.40q", p.Name, p.Kind)
	}
	c := cdx.Component{
		BOMRef: "item-" + id(p.Kind, p.Name), Type: kind, Name: p.Name, Version: p.Version, Hashes: hashes(p.Digest),
		PackageURL: p.purl(), Licenses: licences(p.Licence),
	}
	var props []cdx.Property
	for _, u := range p.Image.Unread {
		props = append(props, cdx.Property{Name: "clawbox:unread", Value: u})
	}
	if len(props) > 0 {
		c.Properties = &props
	}
	var below []cdx.Component
	if os := p.Image.OS; os.ID != "" {
		below = append(below, cdx.Component{BOMRef: "os-" + id(p.Name, os.ID, os.Version), Type: cdx.ComponentTypeOS, Name: os.ID, Version: os.Version, Description: os.Name})
	}
	for _, k := range p.Image.Packages {
		below = append(below, k.component(p))
	}
	if len(below) > 0 {
		c.Components = &below
	}
	return c, nil
}

func (k Package) component(p Part) cdx.Component {
	props := []cdx.Property{{Name: "clawbox:path", Value: k.Path}}
	if k.Source != "" {
		props = append(props, cdx.Property{Name: "clawbox:source", Value: k.Source})
	}
	return cdx.Component{
		BOMRef: "package-" + id(p.Name, k.Type, k.Name, k.Version, k.Arch, k.Licence, k.Source), Type: cdx.ComponentTypeLibrary,
		Name: k.Name, Version: k.Version, PackageURL: k.PURL(p.Image.OS), Licenses: licences(k.Licence), Properties: &props,
	}
}

// licences gives an expression as such, and anything else as a name.
func licences(s string) *cdx.Licenses {
	if e, ok := expression(s); ok {
		return &cdx.Licenses{{Expression: e}}
	}
	if s == "" {
		return nil
	}
	return &cdx.Licenses{{License: &cdx.License{Name: s}}}
}
