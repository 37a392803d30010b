package sbom

import (
	"bytes"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// purposes maps kinds of items to SPDX's package purposes.
var purposes = map[string]string{"image": "CONTAINER", "model": "OTHER", "file": "FILE", "policy": "FILE", "debs": "INSTALL"}

const noAssertion = "NOASSERTION"

// SPDX writes the document as SPDX 2.3 JSON.
func (d Document) SPDX() ([]byte, error) {
	root := spdxPackage("root", d.Name, d.Version, "", d.Digest)
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: d.Name,
		DocumentNamespace: "https://clawbox.io/spdx/" + d.uuid(),
		CreationInfo:      &spdx.CreationInfo{Created: d.created(), Creators: []common.Creator{{CreatorType: "Tool", Creator: "clawbox"}}},
		Packages:          []*spdx.Package{root},
		Relationships:     []*spdx.Relationship{related("DOCUMENT", "DESCRIBES", "root")},
	}
	refs := map[string]bool{}
	for _, p := range d.Parts {
		if purposes[p.Kind] == "" {
			return nil, fmt.Errorf("sbom: item %s is of kind %.40q", p.Name, p.Kind)
		}
		p.spdx(doc, refs)
	}
	for _, r := range sorted(refs) {
		doc.OtherLicenses = append(doc.OtherLicenses, &spdx.OtherLicense{LicenseIdentifier: r, ExtractedText: noAssertion, LicenseName: r})
	}
	var out bytes.Buffer
	err := spdxjson.Write(doc, &out, spdxjson.Indent("  "), spdxjson.EscapeHTML(false))
	return out.Bytes(), err
}

// spdx adds an item and what is in it.
func (p Part) spdx(doc *spdx.Document, refs map[string]bool) {
	item := spdxPackage("item-"+id(p.Kind, p.Name), p.Name, p.Version, p.Licence, p.Digest)
	item.PrimaryPackagePurpose = purposes[p.Kind]
	item.PackageExternalReferences = external(p.purl())
	if len(p.Image.Unread) > 0 {
		item.PackageComment = "incomplete: " + strings.Join(p.Image.Unread, "; ")
	}
	doc.Packages = append(doc.Packages, item)
	doc.Relationships = append(doc.Relationships, related("root", "CONTAINS", item.PackageSPDXIdentifier))
	note(refs, p.Licence)
	for _, k := range p.Image.Packages {
		q := spdxPackage("package-"+id(p.Name, k.Type, k.Name, k.Version, k.Arch, k.Licence, k.Source), k.Name, k.Version, k.Licence, v1.Hash{})
		q.PackageExternalReferences = external(k.PURL(p.Image.OS))
		q.PackageSourceInfo = "found in " + k.Path
		doc.Packages = append(doc.Packages, q)
		doc.Relationships = append(doc.Relationships, related(item.PackageSPDXIdentifier, "CONTAINS", q.PackageSPDXIdentifier))
		note(refs, k.Licence)
	}
}

// note collects the references that an SPDX document must explain.
func note(refs map[string]bool, s string) {
	e, ok := expression(s)
	if !ok {
		return
	}
	for _, f := range strings.FieldsFunc(e, func(r rune) bool { return strings.ContainsRune(" ()", r) }) {
		if strings.HasPrefix(f, "LicenseRef-") {
			refs[f] = true
		}
	}
}

func spdxPackage(ref, name, version, lic string, h v1.Hash) *spdx.Package {
	p := &spdx.Package{
		PackageName: name, PackageSPDXIdentifier: common.ElementID(ref), PackageVersion: version,
		PackageDownloadLocation: noAssertion, IsFilesAnalyzedTagPresent: true,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
	}
	if e, ok := expression(lic); ok {
		p.PackageLicenseDeclared = e
	} else if lic != "" {
		p.PackageLicenseComments = "declared as: " + lic
	}
	if h.Algorithm == "sha256" {
		p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: h.Hex}}
	}
	return p
}

func external(purl string) []*spdx.PackageExternalReference {
	if purl == "" {
		return nil
	}
	return []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl}}
}

func related(a common.ElementID, how string, b common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{RefA: common.MakeDocElementID("", string(a)), Relationship: how, RefB: common.MakeDocElementID("", string(b))}
}
