package config

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
)

// Pin is where the guard's pinned BPF objects appear: a mount.
func (p Paths) Pin() string { return filepath.Join(p.Run, "pins") }

// HostPin is the folder of the host's BPF file system that is bound to Pin, where
// the host has one.
func (p Paths) HostPin() string {
	return fmt.Sprintf("/sys/fs/bpf/clawbox-%.6x", sha256.Sum256([]byte(p.Pin())))
}

// Cgroup is the name of the folder that holds the agents' cgroups, in every
// hierarchy in use. It is made of the state folder's, since two of those are two
// appliances.
func (p Paths) Cgroup() string {
	sum := sha256.Sum256([]byte(p.State))
	return fmt.Sprintf("clawbox-%x", sum[:4])
}
