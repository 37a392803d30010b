// Package config is the appliance's one configuration file: all that the
// installer and the appliance have to agree on.
//
// The installer writes it (Encode), `clawbox serve` and every client verb read
// it (Load). Paths are absolute. It holds no secret.
package config

// APIVersion and Kind head the file.
const (
	APIVersion = "clawbox.io/v1"
	Kind       = "Appliance"
)

// Config is etc/clawbox/appliance.yaml.
type Config struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`

	Release Release `yaml:"release"`
	Paths   Paths   `yaml:"paths"`

	// Registry is the loopback address of the local OCI registry, such as
	// "127.0.0.1:5000".
	Registry string `yaml:"registry"`

	Engine    Engine              `yaml:"engine"`
	Upstreams map[string]Upstream `yaml:"upstreams,omitempty"`

	// Hosts maps names that agents may ask for to addresses, for sites
	// without DNS. An entry here is the operator's word that the address may
	// be private.
	Hosts map[string]string `yaml:"hosts,omitempty"`

	// Credentials are the secrets that policies name. Egress puts them in; no
	// agent sees them.
	Credentials map[string]Credential `yaml:"credentials,omitempty"`

	// Cluster is the Kubernetes that this host is a node of. Without it agents
	// run in sandboxes of the appliance's own.
	Cluster *Cluster `yaml:"cluster,omitempty"`
	// ClusterNetworks are those of the cluster's pods and services. Agents reach
	// them only where a rule names an address or a network inside them, and the
	// first address of each never: it is the API server's, or a node's. Left out
	// beside Cluster: DefaultClusterNetworks.
	ClusterNetworks []string `yaml:"clusterNetworks,omitempty"`

	// Agents says how to run each image that the bundle made ready.
	Agents []Agent `yaml:"agents,omitempty"`

	// HoldSeconds bounds how long an unlisted connection waits for an operator.
	HoldSeconds int `yaml:"holdSeconds"`
	// RecordMiB is how much of the ledger one agent may write at once, and
	// then an hour, in MiB; who would write more is slowed down. 0: 256.
	RecordMiB int `yaml:"recordMiB,omitempty"`
	// Warm is how many launchers wait for the next starts of agents, at some 1 MB
	// of memory each. 0: 2; -1: none.
	Warm int `yaml:"warm,omitempty"`
	// UIDBase is the first of 1024 host user ids given to sandboxes.
	UIDBase int `yaml:"uidBase"`
	// ServiceUID is the first of ServiceCount host user ids given to the
	// appliance's own services; 0: those right after the sandboxes' and the
	// engine's (UIDBase + UIDCount + 1).
	ServiceUID int `yaml:"serviceUID,omitempty"`
	// AcceptTier is the lowest guard tier that the operator accepted; anything
	// lower than T3 is a weakening and is logged at each start.
	AcceptTier string `yaml:"acceptTier"`
}

// Release names what is installed.
type Release struct {
	Name     string `yaml:"name"`
	Version  string `yaml:"version"`
	Sequence int64  `yaml:"sequence"`
	Digest   string `yaml:"digest"` // sha256 of the signed release
}

// Paths is where things are.
type Paths struct {
	Slot     string `yaml:"slot"`     // this release's programs and policies (bin/, policies/)
	Store    string `yaml:"store"`    // the content store
	State    string `yaml:"state"`    // agents, layers, approvals
	Ledger   string `yaml:"ledger"`   // the log's directory
	Run      string `yaml:"run"`      // sockets
	Keys     string `yaml:"keys"`     // private keys, root only
	Receipts string `yaml:"receipts"` // installation receipts, in order
}

// Engine is the embedded model engine.
type Engine struct {
	Binary string   `yaml:"binary,omitempty"` // empty: no embedded engine
	Listen string   `yaml:"listen,omitempty"` // loopback address
	Models []string `yaml:"models,omitempty"` // refs in the store
	UID    int      `yaml:"uid,omitempty"`
}

// Upstream is a model endpoint besides the embedded engine.
type Upstream struct {
	URL string `yaml:"url"` // base, such as https://api.example.com/v1
	// Local says that the endpoint is inside the site: sensitive content may go there.
	Local bool `yaml:"local,omitempty"`
	// KeyFile holds the bearer credential; only the router reads it.
	KeyFile string `yaml:"keyFile,omitempty"`
}

// Credential is a secret for requests of agents to the outside.
type Credential struct {
	KeyFile string `yaml:"keyFile"` // holds the value; mode 0600
}

// Cluster is where agents become pods.
type Cluster struct {
	// Kubeconfig is a file whose user may create, get, list and delete pods in
	// Namespace, and should be able to do no more (airgap-manifests/pods).
	Kubeconfig string `yaml:"kubeconfig"`
	Namespace  string `yaml:"namespace"` // the agents' own
	Node       string `yaml:"node"`      // this host's name in the cluster
	// Registry is the host in the names of agents' images, which containerd's
	// mirrors lead to this host's registry.
	Registry string `yaml:"registry"`
}

// Agent is a launchable agent.
type Agent struct {
	Name   string `yaml:"name"`
	Image  string `yaml:"image"`  // ref in the store
	Policy string `yaml:"policy"` // file below Slot/policies or a preset's name
	// Command replaces the image's entry point and command, Args its command
	// only (as command and args do in Kubernetes).
	Command []string `yaml:"command,omitempty"`
	Args    []string `yaml:"args,omitempty"`
	Env     []string `yaml:"env,omitempty"` // NAME=value
}
