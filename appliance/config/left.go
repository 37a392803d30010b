package config

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
)

// A cgroup is named after an appliance's state folder, since two of those are two
// appliances.
func (p Paths) mark() [sha256.Size]byte { return sha256.Sum256([]byte(p.State)) }

// Pin is where the guard's pinned BPF objects appear: a mount.
func (p Paths) Pin() string { return filepath.Join(p.Run, "pins") }

// HostPin is the folder of the host's BPF file system that is bound to Pin, where
// the host has one.
func (p Paths) HostPin() string {
	return fmt.Sprintf("/sys/fs/bpf/clawbox-%.6x", sha256.Sum256([]byte(p.Pin())))
}

// Cgroup is the name of the folder that holds the agents' cgroups, in every
// hierarchy in use.
func (p Paths) Cgroup() string { return fmt.Sprintf("clawbox-%.4x", p.mark()) }
