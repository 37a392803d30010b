package bundle

// More names on the media; see docs/bundle-format.md.
const (
	rootDir   = "root"
	parityDir = "parity"
)
