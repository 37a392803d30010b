package guard

import (
	"sync/atomic"

	"github.com/cilium/ebpf"
)

// untold tells whether events wait in the rings of a pinned set of this version:
// its guard died before it had acknowledged them, and its scopes with it. Where
// that can't be told there are some.
func untold(set string) bool {
	for _, name := range []string{witnessMapExecs, witnessMapRefusals, witnessMapOpens, witnessMapConnects} {
		m, err := ebpf.LoadPinnedMap(set+"/map_"+name, nil)
		if err != nil {
			return true
		}
		n, err := filling(m)
		m.Close()
		if err != nil || n > 0 {
			return true
		}
	}
	return false
}

// filling is how many bytes of a ring are not given back.
func filling(m *ebpf.Map) (uint64, error) {
	r, err := newRing(m)
	if err != nil {
		return 0, err
	}
	defer r.close()
	return atomic.LoadUint64(r.prod) - r.consumed(), nil
}
