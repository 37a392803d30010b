//go:build !purego

package lanes

import (
	"crypto/fips140"

	"github.com/klauspost/cpuid/v2"
)

// Available says whether this processor can, and this program may: in FIPS 140
// mode sha256 is the validated module's alone.
var Available = cpuid.CPU.Supports(cpuid.SHA, cpuid.SSSE3, cpuid.SSE4) && !fips140.Enabled()

// blocks hashes n blocks, at least one, from each of p and q.
//
//go:noescape
func blocks(a, b *[8]uint32, p, q *byte, n int)
