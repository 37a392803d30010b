//go:build !amd64 || purego

package lanes

// Available is false: crypto/sha256 it is.
const Available = false

func blocks(_, _ *[8]uint32, _, _ *byte, _ int) { panic("lanes: not here") }
