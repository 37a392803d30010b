package installer

import (
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/clawbox/clawbox/bundle/manifest"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Release is what the installer needs to know of a release whose signature
// has been verified; FromManifest makes it.
type Release struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Sequence int64     `json:"sequence"` // only grows; a lower one is refused
	Digest   string    `json:"digest"`   // sha256 of the signed release
	Created  time.Time `json:"created"`
	Signers  []string  `json:"signers"` // names of the trusted keys that signed
	Bytes    int64     `json:"bytes"`   // payload on the media
	Items    []Item    `json:"items"`
	// What it may follow on, see manifest.CheckStep.
	UpgradesFrom int64                `json:"upgradesFrom,omitempty"`
	Components   []manifest.Component `json:"components,omitempty"`
}

// Item is one thing that a release carries.
type Item struct {
	Name            string      `json:"name"`
	Kind            string      `json:"kind"` // a row of manifest.Kinds
	Ref             string      `json:"ref"`  // its name in the store
	Digest          v1.Hash     `json:"digest"`
	Platforms       []string    `json:"platforms,omitempty"` // os/arch of images
	Licence         string      `json:"licence,omitempty"`
	Redistributable bool        `json:"redistributable"`
	Path            string      `json:"path,omitempty"` // where the slot wants it
	Mode            fs.FileMode `json:"mode,omitempty"`
	Size            int64       `json:"size"` // bytes, everything it refers to
}

// Programs that a slot must hold, and those that it may hold.
const (
	mainPath     = "bin/clawbox"
	launcherPath = "bin/clawbox-launch"
	enginePath   = "bin/ollama"
	// Of the profile cluster.
	k3sPath     = "bin/k3s"
	clusterPath = "bin/clawbox-cluster"
	runtimePath = "bin/clawbox-runc"
)

// kind lists the items of one kind, in the release's order.
func (r Release) kind(k string) []Item {
	var out []Item
	for _, it := range r.Items {
		if it.Kind == k {
			out = append(out, it)
		}
	}
	return out
}

// program finds the file item that the slot wants at p.
func (r Release) program(p string) (Item, bool) {
	for _, it := range r.kind("file") {
		if it.place() == p {
			return it, true
		}
	}
	return Item{}, false
}

// slotItems are the items that become files of the slot.
func (r Release) slotItems() []Item {
	return slices.Concat(r.kind("file"), r.kind("policy"), r.kind("debs"))
}

// place is an item's path in the slot. Policies without one go where the
// appliance looks for them.
func (it Item) place() string {
	switch {
	case it.Path != "":
		return it.Path
	case it.Kind == "policy":
		return "policies/" + it.Name + ".yaml"
	}
	return path.Join("files", it.Name)
}

// PolicyName is how a configuration names a policy item: its file's name.
func (it Item) PolicyName() string { return path.Base(it.place()) }

// perm is an item's mode in the slot: never writable by others, never setuid.
func (it Item) perm() fs.FileMode {
	if it.Mode == 0 {
		return 0o644
	}
	return it.Mode.Perm() &^ 0o022
}

// String names a release for messages.
func (r Release) String() string { return r.Name + " " + r.Version }
