package config

import (
	"crypto/sha256"
	"fmt"
)

// What the kernel holds for an appliance is named after its state folder, since
// two of those are two appliances.
func (p Paths) mark() [sha256.Size]byte { return sha256.Sum256([]byte(p.State)) }

// Pin is the folder of the guard's pinned BPF objects.
func (p Paths) Pin() string { return fmt.Sprintf("/sys/fs/bpf/clawbox-%.6x", p.mark()) }

// Cgroup is the name of the folder that holds the agents' cgroups, in every
// hierarchy in use.
func (p Paths) Cgroup() string { return fmt.Sprintf("clawbox-%.4x", p.mark()) }
