// Package bundle makes signed offline bundles and reads them back.
//
// A recipe says what goes in; Build brings it from registries, layouts, model
// directories and files into the bundle, as bundle.lock pins it:
//
//	rel, err := bundle.Build(ctx, bundle.BuildOptions{Recipe: "recipe.yaml", Out: "/media/stick", Signers: signers})
//
// The other side opens the media, which verifies signature and index, and
// brings everything into the host's store in one pass:
//
//	m, err := bundle.OpenMedia(trust, "/media/stick1", "/media/stick2")
//	err = manifest.CheckSequence(installed, m.Release().Sequence)
//	err = m.Load(ctx, store, progress)
//
// Who only wants to see something opens single blobs, in any order and each
// chunk proved (Media.OpenBlob), or looks at the two small files of a bundle
// whose parts may be missing and that nobody may have signed (MediaOptions.Look).
//
// Everything in a bundle is an OCI manifest: images as they are, models as
// CNCF ModelPack artifacts, files and policies as artifacts of one raw layer.
// Blobs lie raw, one after the other, in parts below FAT32's limit; see
// docs/bundle-format.md for the bytes.
//
// While a build reads a source, to sum it, it also searches it for key material,
// which it refuses, and lists the software in images (look). Items that may not
// be handed on are refused unless the lock says who decided otherwise (Consent).
// docs/recipe.md has every field of a recipe and of a lock.
//
// What costs what: a build writes each byte of a local file and of a layer once,
// into the part (what else is pulled twice: work store and part), and sums and
// searches it once; a build of what has not changed reads no payload. A load reads each missing byte
// once and writes it once. Inspect and the signature check read at most 16 MiB.
//
// On request a bundle is encrypted to recipients (age), has parity parts against
// loss (Reed-Solomon), is spread over several directories, or leaves out what
// another release has (Since).
//
// Limits: the same release encrypted twice is not the same bytes; a part goes
// into one directory whole.
package bundle
