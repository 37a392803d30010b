package installer

import (
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/installer/host"
)

// Profiles are the forms of an appliance.
var Profiles = []string{"solo", "cluster"}

// Roles of a node: the first one of a cluster, and one that joins.
const (
	RoleServer = string(k3s.Server)
	RoleAgent  = string(k3s.Agent)
)

// ClusterAnswers are decisions about one node, and, on a server, about what the
// cluster runs. An empty field gets what the machine suggests. The token with
// which an agent joins is a secret and not among them: see Env.Token.
type ClusterAnswers struct {
	Role    string `yaml:"role,omitempty" json:"role,omitempty"`       // RoleServer or RoleAgent
	Node    string `yaml:"node,omitempty" json:"node,omitempty"`       // its name; empty: the host's
	Address string `yaml:"address,omitempty" json:"address,omitempty"` // its IPv4 address; empty: the only one
	Server  string `yaml:"server,omitempty" json:"server,omitempty"`   // of an agent: https://10.0.0.1:6443

	Tenants   []TenantAnswers  `yaml:"tenants,omitempty" json:"tenants,omitempty"`
	Models    []ServingAnswers `yaml:"models,omitempty" json:"models,omitempty"`
	Telemetry bool             `yaml:"telemetry,omitempty" json:"telemetry,omitempty"` // collect metrics on the cluster
}

// TenantAnswers bound one tenant; empty fields get k3s.DefaultTenant's.
type TenantAnswers struct {
	Name    string `yaml:"name" json:"name"`
	CPU     string `yaml:"cpu,omitempty" json:"cpu,omitempty"`
	Memory  string `yaml:"memory,omitempty" json:"memory,omitempty"`
	Storage string `yaml:"storage,omitempty" json:"storage,omitempty"`
	Pods    int    `yaml:"pods,omitempty" json:"pods,omitempty"`
}

func (t TenantAnswers) tenant() k3s.Tenant {
	return k3s.Tenant{Name: t.Name, CPU: t.CPU, Memory: t.Memory, Storage: t.Storage, Pods: t.Pods, Level: "restricted"}
}

// ServingAnswers say which engine serves a model of the release.
type ServingAnswers struct {
	Model   string `yaml:"model" json:"model"`                         // item of the release
	Engine  string `yaml:"engine" json:"engine"`                       // one of Engines
	Image   string `yaml:"image" json:"image"`                         // the engine's image, an item of the release
	GPUs    int    `yaml:"gpus,omitempty" json:"gpus,omitempty"`       // 0: on the CPU
	Profile string `yaml:"profile,omitempty" json:"profile,omitempty"` // NIM's, for its older cache
}

// Engines that can serve a model in a cluster; the names with "nim-" are NIM's
// three cache contracts (bundle/model.NIMContract tells them apart).
var Engines = []string{"ollama", "vllm", "nim-cache", "nim-path", "nim-native"}

// engineImages say which engines an image may be, by the beginning of its
// item's name. NIM's three contracts can be told apart only from the image
// itself, so the operator says which one.
var engineImages = []struct {
	prefix  string
	engines []string
}{
	{"vllm", []string{"vllm"}},
	{"nim", []string{"nim-cache", "nim-path", "nim-native"}},
	{"ollama", []string{"ollama"}},
}

// EnginesOf are the engines that the image called name may be; none where it
// is something else.
func EnginesOf(name string) []string {
	for _, e := range engineImages {
		if strings.HasPrefix(name, e.prefix) {
			return e.engines
		}
	}
	return nil
}

// partImages are those of the charts.
var partImages = []string{"nvidia-device-plugin", "victoria-metrics", "dcgm-exporter"}

// ofCluster says whether an image is the cluster's own, and no agent's.
func ofCluster(name string) bool {
	for _, i := range nodeImages {
		if i.item == name {
			return true
		}
	}
	return slices.Contains(partImages, name) || EnginesOf(name) != nil
}

var nodeRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // RFC 1123 label, as k3s.Node wants

// Validate says what is wrong in c by itself.
func (c ClusterAnswers) Validate() error {
	var errs []error
	if c.Role != RoleServer && c.Role != RoleAgent {
		errs = append(errs, bad("cluster.role", c.Role, `"server" for the first node, "agent" for one that joins`))
	}
	if c.Node != "" && !nodeRE.MatchString(c.Node) {
		errs = append(errs, bad("cluster.node", c.Node, "lower-case letters, digits and hyphens, at most 63"))
	}
	if c.Address != "" {
		if a, err := netip.ParseAddr(c.Address); err != nil || !a.Is4() || a.IsLoopback() || a.IsUnspecified() {
			errs = append(errs, bad("cluster.address", c.Address, "this node's IPv4 address, such as 10.0.0.7"))
		}
	}
	return errors.Join(append(errs, c.joining(), c.tenants(), c.serving())...)
}

// joining checks what only one of the roles may and must have.
func (c ClusterAnswers) joining() error {
	if c.Role == RoleAgent {
		errs := []error{ValidServer(c.Server)}
		if len(c.Tenants)+len(c.Models) > 0 || c.Telemetry {
			errs = append(errs, bad("cluster", "tenants, models or telemetry on an agent", "them on the server, which decides for all nodes"))
		}
		return errors.Join(errs...)
	}
	if c.Server != "" {
		return bad("cluster.server", c.Server, `none unless role is "agent"`)
	}
	return nil
}

// ValidServer refuses what is no address of a server to join.
func ValidServer(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Port() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return bad("cluster.server", s, "the server's address, such as https://10.0.0.1:6443")
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		return bad("cluster.server", s, "an IP address: nothing resolves names here")
	}
	return nil
}

func (c ClusterAnswers) tenants() error {
	var errs []error
	seen := map[string]bool{}
	for _, t := range c.Tenants {
		if seen[t.Name] || slices.Contains(ownNamespaces, t.Name) {
			errs = append(errs, bad("cluster.tenants", t.Name, "each tenant once, and no name of the appliance's own ("+list(ownNamespaces)+")"))
		}
		seen[t.Name] = true
		_, err := t.tenant().Manifest()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c ClusterAnswers) serving() error {
	var errs []error
	seen := map[string]bool{}
	for _, s := range c.Models {
		switch {
		case !nodeRE.MatchString(s.Model) || seen[s.Model]:
			errs = append(errs, bad("cluster.models", s.Model, "each model once, by its item's name"))
		case !slices.Contains(Engines, s.Engine):
			errs = append(errs, bad("cluster.models."+s.Model+".engine", s.Engine, "one of "+list(Engines)))
		case s.Image == "":
			errs = append(errs, bad("cluster.models."+s.Model+".image", s.Image, "the item of the engine's image"))
		case s.GPUs < 0 || s.GPUs > 16:
			errs = append(errs, bad("cluster.models."+s.Model+".gpus", s.GPUs, "0 to 16"))
		case s.GPUs == 0 && s.Engine != "ollama":
			errs = append(errs, bad("cluster.models."+s.Model+".gpus", s.GPUs, "1 or more: only the engine ollama runs on a CPU"))
		case s.Engine == "nim-cache" && s.Profile == "":
			errs = append(errs, bad("cluster.models."+s.Model+".profile", s.Profile, "the profile that the cache was filled for"))
		}
		seen[s.Model] = true
	}
	return errors.Join(errs...)
}

// name is the node's name in the cluster.
func (c ClusterAnswers) name(f host.Facts) string {
	if c.Node != "" {
		return c.Node
	}
	return strings.ToLower(f.Hostname)
}

// address is the node's address: the answered one, or the only one there is
// besides those that a cluster which runs has given it.
func (c ClusterAnswers) address(f host.Facts) string {
	if c.Address != "" {
		return c.Address
	}
	own := slices.DeleteFunc(slices.Clone(f.Addresses), func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && slices.ContainsFunc(clusterRanges, func(r string) bool { return netip.MustParsePrefix(r).Contains(a) })
	})
	if len(own) == 1 {
		return own[0]
	}
	return ""
}

// iface is the interface whose network holds the node's address.
func (c ClusterAnswers) iface(f host.Facts) string {
	a, err := netip.ParseAddr(c.address(f))
	if err != nil {
		return ""
	}
	for _, n := range f.Networks {
		if p, err := netip.ParsePrefix(n.Prefix); err == nil && p.Contains(a) {
			return n.Iface
		}
	}
	return ""
}

// Node is this machine as a node of the cluster, for the files that its K3s
// reads.
func (a Answers) Node(f host.Facts, r Release) (k3s.Node, error) {
	ip, err := netip.ParseAddr(a.Cluster.address(f))
	if err != nil {
		return k3s.Node{}, bad("cluster.address", a.Cluster.address(f), "one of this host's: "+list(f.Addresses))
	}
	n := k3s.Node{
		Role: k3s.Role(a.Cluster.Role), Name: a.Cluster.name(f), IP: ip, Iface: a.Cluster.iface(f),
		Registry: "http://" + a.Registry, Server: a.Cluster.Server, Exempt: []string{gpuNamespace},
		Cgroup1: f.Cgroup.Version != "v2", NoSysResource: !f.Resource,
	}
	for _, i := range nodeImages {
		it, _ := r.item("image", i.item)
		*i.to(&n.Images) = imageRef(it)
	}
	return n, nil
}

// nodeImages are the images that a node cannot do without, by the names of the
// release's items.
var nodeImages = []struct {
	item string
	to   func(*k3s.Images) *string
}{
	{"pause", func(i *k3s.Images) *string { return &i.Pause }},
	{"coredns", func(i *k3s.Images) *string { return &i.CoreDNS }},
	{"local-path-provisioner", func(i *k3s.Images) *string { return &i.LocalPath }},
	{"busybox", func(i *k3s.Images) *string { return &i.Helper }},
}

// imageRef is how pods name an image of the release: the local registry under
// its own host name, pinned by what was signed.
func imageRef(it Item) string {
	if it.Ref == "" {
		return ""
	}
	return k3s.Registry + "/" + it.Ref + "@" + it.Digest.String()
}

// item finds one by kind and name.
func (r Release) item(kind, name string) (Item, bool) {
	for _, it := range r.kind(kind) {
		if it.Name == name {
			return it, true
		}
	}
	return Item{}, false
}
