package confine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities are those that a Spec may keep. There is no user namespace, so
// a capability is the host's: only those stand here whose reach ends at the
// process's own network namespace and budgets, and those without which one of
// the appliance's services cannot do its work. Which of them an agent may have
// is the policy language's decision.
var capabilities = map[string]uint{
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
	"IPC_LOCK":         unix.CAP_IPC_LOCK,
	// The guard's: to load programs, trace, and attach to cgroups.
	"BPF":       unix.CAP_BPF,
	"PERFMON":   unix.CAP_PERFMON,
	"NET_ADMIN": unix.CAP_NET_ADMIN,
}

func capMask(names []string) (uint64, error) {
	var m uint64
	for _, n := range names {
		c, ok := capabilities[n]
		if !ok {
			return 0, fmt.Errorf("capability %q cannot be kept; want one of %s", n, strings.Join(slices.Sorted(maps.Keys(capabilities)), ", "))
		}
		m |= 1 << c
	}
	return m, nil
}
