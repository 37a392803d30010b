package config

import (
	"fmt"
	"slices"
)

// services are the appliance's own, each with a user id of its own. The order
// gives the ids, so a new one comes last.
var services = []string{"ledger", "guard", "egress", "router", "registry", "relay"}

// ServiceCount is how many ids are kept for services, some of them for later
// releases.
const ServiceCount = 15

// FirstServiceUID is the first id of the services: the configured one, or the
// one that an older configuration implies.
func (c Config) FirstServiceUID() int {
	if c.ServiceUID != 0 {
		return c.ServiceUID
	}
	return c.UIDBase + UIDCount + 1
}

// UIDOf is the user id of the service called role, which must be one.
func (c Config) UIDOf(role string) int {
	i := slices.Index(services, role)
	if i < 0 {
		panic("config: no service is called " + role)
	}
	return c.FirstServiceUID() + i
}

// serviceUIDs refuses ids that mean something else or belong to somebody else.
func (c Config) serviceUIDs() error {
	first := c.FirstServiceUID()
	last := first + ServiceCount - 1
	meets := func(a, b int) bool { return first <= b && a <= last }
	if first < minUID || last > maxUID || meets(nobody, noUID) || meets(c.UIDBase, c.UIDBase+UIDCount-1) || c.Engine.UID != 0 && meets(c.Engine.UID, c.Engine.UID) {
		return bad("serviceUID", first, fmt.Sprintf("%d ids from %d on, apart from %d-%d of the sandboxes, the engine's %d, %d and %d",
			ServiceCount, minUID, c.UIDBase, c.UIDBase+UIDCount-1, c.Engine.UID, nobody, noUID))
	}
	return nil
}

// defaultRecordMiB is some 350,000 records.
const defaultRecordMiB = 256

// RecordBytes is RecordMiB in bytes.
func (c Config) RecordBytes() int64 {
	n := int64(c.RecordMiB)
	if n == 0 {
		n = defaultRecordMiB
	}
	return n << 20
}

// defaultWarm serves two starts in quick succession; maxWarm is what more than
// one host full of agents starts at a time.
const (
	defaultWarm = 2
	maxWarm     = 64
)

// WarmLaunchers is how many launchers wait for starts.
func (c Config) WarmLaunchers() int {
	switch {
	case c.Warm == 0:
		return defaultWarm
	case c.Warm < 0:
		return 0
	}
	return c.Warm
}
