package doctor

import (
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/installer"
)

// Facts are what Look found. Sizes are bytes.
type Facts struct {
	Now    time.Time         `json:"now"`
	Root   string            `json:"root"`
	Failed map[string]string `json:"failed"` // by look: why it could not tell

	Installed installer.Situation `json:"installed"`
	Start     string              `json:"start"` // "systemd" or "none"

	ConfigRelease int64     `json:"configRelease"` // sequence that the configuration is for
	ReleaseTime   time.Time `json:"releaseTime"`   // when the release was made
	NewestFile    time.Time `json:"newestFile"`    // the ledger's last write

	Health  string          `json:"health"`           // "" when it is healthy, else why not
	Control string          `json:"control"`          // "" when it answers, else why not
	Status  *control.Status `json:"status,omitempty"` // what it answered
	Unit    string          `json:"unit,omitempty"`   // systemd's word for the service
	Enabled bool            `json:"enabled"`          // at boot

	Disks   []Disk   `json:"disks"`
	Ledger  Ledger   `json:"ledger"`
	Keys    []Key    `json:"keys"`
	Trust   Trust    `json:"trust"`
	Expires []Expiry `json:"expires"`

	Missing  []string `json:"missing"`  // blobs of the release that the store lacks
	Programs []string `json:"programs"` // of the slot, that are missing or can't be executed
	Mounts   []string `json:"mounts"`   // below the state folder
	Kernel   []string `json:"kernel"`   // cgroups and pins
	Sockets  []Socket `json:"sockets"`
	Taken    []string `json:"taken"`   // our addresses that somebody listens on
	Tier     string   `json:"tier"`    // that the kernel promises
	Accepted string   `json:"accepts"` // the lowest tier that the operator accepted
	Landlock int      `json:"landlock"`
	Unclean  string   `json:"unclean,omitempty"` // what the mark of the last run says
	Pods     Pods     `json:"pods"`
	Node     Node     `json:"node"`
}

// Disk is the room on one file system.
type Disk struct {
	Path   string `json:"path"`
	Free   int64  `json:"free"`
	Size   int64  `json:"size"`
	Inodes int64  `json:"inodes"` // free; -1: made as needed
	RO     bool   `json:"readOnly"`
	Ledger bool   `json:"ledger"` // the ledger lies there
}

// Ledger is the state of the record.
type Ledger struct {
	Exists  bool   `json:"exists"`
	Expect  bool   `json:"expected"` // something says that there was one
	Entries int64  `json:"entries"`
	Bytes   int64  `json:"bytes"`
	Full    bool   `json:"verifiedInFull"`
	Fault   string `json:"fault,omitempty"`
}

// Key is a file that holds a secret.
type Key struct {
	Path  string `json:"path"`
	What  string `json:"what"`
	Fault string `json:"fault,omitempty"`
}

// Trust is whose releases count here.
type Trust struct {
	Where     string   `json:"where"`
	Keys      []string `json:"keys"` // names
	Threshold int      `json:"threshold"`
	Root      int64    `json:"root,omitempty"` // version of the root; 0: fixed keys
}

// Expiry is a certificate, and until when it counts.
type Expiry struct {
	Path    string    `json:"path"`
	Subject string    `json:"subject"`
	Until   time.Time `json:"until"`
	Renews  bool      `json:"renews"` // by itself, before that
}

// Socket is one that the appliance makes.
type Socket struct {
	Path  string `json:"path"`
	Fault string `json:"fault,omitempty"`
	There bool   `json:"there"`
}

// Pods is what makes agents pods.
type Pods struct {
	Placed  bool   `json:"placed"`  // this host's containerd has the runtime
	Cluster bool   `json:"cluster"` // the appliance knows of the cluster
	Fault   string `json:"fault,omitempty"`
}

// Node is this host's K3s.
type Node struct {
	Placed bool   `json:"placed"`
	Fault  string `json:"fault,omitempty"` // what of the cluster's own does not work
}

// runs says that an appliance answers.
func (f Facts) runs() bool { return f.Control == "" }
