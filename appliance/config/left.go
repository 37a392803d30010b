package config

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
)

// Pin is the folder of the guard's pinned BPF objects.
func (p Paths) Pin() string { return filepath.Join(p.Run, "pins") }

// Cgroup is the name of the folder that holds the agents' cgroups, in every
// hierarchy in use. It is made of the state folder's, since two of those are two
// appliances.
func (p Paths) Cgroup() string {
	sum := sha256.Sum256([]byte(p.State))
	return fmt.Sprintf("clawbox-%x", sum[:4])
}
