// Package licence says what may leave the building: licences, acceptances and
// secrets.
//
// Check holds an item's licence to the SPDX expression syntax (SPDX 2.3, annex D)
// and to the names of the SPDX licence list; what is not on the list is written
// LicenseRef-NAME:
//
//	err := licence.Check("Apache-2.0 WITH LLVM-exception OR LicenseRef-NVIDIA-Open-Model")
//
// Release refuses a bundle with items that may not be handed on, or whose terms
// nobody has accepted, unless the lock records who decided it:
//
//	err := licence.Release(terms, lock.Acceptances)
//
// A Scanner looks for key material in everything that a bundle will carry. It is
// an io.Writer, so it sits beside the hash while bytes are read once:
//
//	s := licence.NewScanner(licence.Place{Item: "web", File: "app/.env"}, report)
//	io.Copy(io.MultiWriter(hash, s), file)
//	s.Close()
//
// A finding says item, file, offset and rule, and a fingerprint to allow it by,
// never the secret. The rules are a table; each has a literal that is looked for
// in one pass, and an expression that is tried only there.
//
// Limits: secrets that are encrypted, split or inside archives are not found;
// layers of images are unpacked by bundle/layer before they come here. An NGC
// key of the old kind has no form of its own and is found only beside its name.
package licence
