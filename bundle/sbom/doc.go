// Package sbom lists the software in images and bundles, and writes the lists as
// CycloneDX 1.6 and SPDX 2.3.
//
//	img, err := sbom.Scan(ctx, layers, nil)
//	d := sbom.Document{Name: "web", Version: "1.2.0", Digest: digest, Created: release.Created, Parts: []sbom.Part{{Kind: "image", …, Image: img}}}
//	cdx, err := d.CycloneDX()
//	spdx, err := d.SPDX()
//
// Scan reads each layer once, as a stream, bottom to top, and keeps what the
// last layer leaves: a file that an upper layer replaces or hides counts no more.
// The optional tee sees the content of every file in the same pass; that is
// where the scan for secrets sits.
//
// Where packages are found:
//
//	Debian, Ubuntu    var/lib/dpkg/status, status.d/* (distroless)
//	Alpine            lib/apk/db/installed
//	Go                build information in executables, Go 1.18 and later
//	npm               node_modules/**/package.json, package-lock.json
//	Python            *.dist-info/METADATA, *.egg-info
//
// What can't be read is said, not left out: RPM databases (Berkeley DB, NDB or
// SQLite), and files that are damaged or too large, are listed in Image.Unread,
// and the documents then say that they are incomplete.
//
// The bytes depend on the input alone: no random serial number, and the time is
// the release's.
//
// Limits: files that no package manager knows (a C program copied in) are not
// seen. Licences are what packages declare; Debian's are in copyright files,
// which are not read.
package sbom
