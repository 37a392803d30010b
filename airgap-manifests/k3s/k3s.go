// Package k3s holds the files that turn a K3s, as its makers ship it, into the
// cluster of the appliance: hardened, with one registry, without a way out.
//
//	n := k3s.Node{Role: k3s.Server, Name: "box", IP: ip, Iface: "eth0", Registry: "http://127.0.0.1:5000", Images: k3s.SourceImages}
//	files, err := n.Files()       // absolute paths on the node; the caller writes them
//	y, err := k3s.Tenant{Name: "acme"}.Manifest()
//
// Everything here is a pure function of its fields. A field that could end a
// YAML value early is refused, so no template quotes.
//
// Files are made for a K3s that is started as `k3s server` or `k3s agent`
// without any flag. The join token is a secret and not among them.
//
// Beside this package lie the nested modules from which package artifact builds
// a K3s for tests.
package k3s

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"regexp"
	"text/template"
)

// Where K3s and its files lie on a node.
const (
	ConfigDir    = "/etc/rancher/k3s"
	DataDir      = "/var/lib/rancher/k3s"
	TokenFile    = ConfigDir + "/token"                  // the join token, on agents
	NRISocket    = "/var/run/nri/nri.sock"               // where containerd takes NRI plugins
	Kubeconf     = ConfigDir + "/k3s.yaml"               // the administrator's, written by the server
	NodeKubeconf = DataDir + "/agent/kubelet.kubeconfig" // the kubelet's, written on every node
	Manifests    = DataDir + "/server/manifests"         // what lies here, the server applies
	AuditLog     = DataDir + "/server/logs/audit.log"

	// ContainerdTemplate is what K3s makes containerd's configuration from;
	// a caller may add to it.
	ContainerdTemplate = DataDir + "/agent/etc/containerd/config-v3.toml.tmpl"
)

// Registry is the host name by which pods name images of this appliance. Any
// other name leads to the same registry.
const Registry = "clawbox.internal"

// Role is what K3s does on a node.
type Role string

// The server has the control plane and runs pods, too.
const (
	Server Role = "server"
	Agent  Role = "agent"
)

// Images are what the node itself needs, as image references.
type Images struct {
	Pause, CoreDNS, LocalPath string
	Helper                    string // has /bin/sh, mkdir, chmod and rm; makes local-path's folders
}

// SourceImages are those that package artifact builds.
var SourceImages = Images{
	Pause: Registry + "/pause:1.0", CoreDNS: Registry + "/coredns:1.13.1",
	LocalPath: Registry + "/local-path-provisioner:0.0.30", Helper: Registry + "/busybox:debian",
}

// Node is one host of the cluster.
type Node struct {
	Role     Role
	Name     string     // DNS label
	IP       netip.Addr // of this node, on Iface
	Iface    string     // the interface that all nodes share
	Registry string     // URL of the registry on this host
	Images   Images
	Server   string   // URL of the server, port 6443 as a rule; agents only
	Exempt   []string // further namespaces without a Pod Security Standard

	Cgroup1       bool // the host has cgroup v1
	NoSysResource bool // root has no CAP_SYS_RESOURCE, as in some containers
}

// File is a file to be placed on a node.
type File struct {
	Path string // absolute
	Mode fs.FileMode
	Data []byte
}

//go:embed manifests
var embedded embed.FS

var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(embedded, "manifests/*"))

// init gives kubelet.yaml, which two files share, the name that they use.
func init() {
	template.Must(templates.AddParseTree("kubelet", templates.Lookup("kubelet.yaml").Tree))
}

// place says which template becomes which file.
type place struct {
	template string
	path     string
	mode     fs.FileMode
	when     func(Node) bool
}

func always(Node) bool       { return true }
func onServer(n Node) bool   { return n.Role == Server }
func onAgent(n Node) bool    { return n.Role == Agent }
func lacksPower(n Node) bool { return n.NoSysResource }

var places = []place{
	{"server.yaml", ConfigDir + "/config.yaml", 0o600, onServer},
	{"agent.yaml", ConfigDir + "/config.yaml", 0o600, onAgent},
	{"registries.yaml", ConfigDir + "/registries.yaml", 0o600, always},
	{"resolv.conf", ConfigDir + "/resolv.conf", 0o644, always},
	{"audit.yaml", ConfigDir + "/audit.yaml", 0o600, onServer},
	{"admission.yaml", ConfigDir + "/admission.yaml", 0o600, onServer},
	{"lacks-sys-resource.toml", ConfigDir + "/containerd-lacks-sys-resource.toml", 0o600, lacksPower},
	{"sysctl.conf", "/etc/sysctl.d/90-clawbox-k3s.conf", 0o644, always},
	{"containerd.toml", ContainerdTemplate, 0o600, always},
	{"coredns.yaml", Manifests + "/clawbox-coredns.yaml", 0o600, onServer},
	{"local-path.yaml", Manifests + "/clawbox-local-path.yaml", 0o600, onServer},
}

// Files returns what the node's K3s reads when it starts.
func (n Node) Files() ([]File, error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	var files []File
	for _, p := range places {
		if !p.when(n) {
			continue
		}
		b, err := render(p.template, n)
		if err != nil {
			return nil, err
		}
		files = append(files, File{p.path, p.mode, b})
	}
	return files, nil
}

func render(name string, data any) ([]byte, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return nil, fmt.Errorf("k3s: %w", err)
	}
	return b.Bytes(), nil
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // RFC 1123
	iface     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)    // IFNAMSIZ
	imageName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?$`)
	quantity  = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`) // what Kubernetes calls a quantity, without exponents
)

func (n Node) check() error {
	errs := []error{
		match("Name", n.Name, label, "a DNS label"),
		match("Iface", n.Iface, iface, "the name of a network interface"),
		match("Images.Pause", n.Images.Pause, imageName, "an image reference with its registry"),
		checkURL("Registry", n.Registry),
	}
	if !n.IP.IsValid() || n.IP.IsUnspecified() {
		errs = append(errs, fmt.Errorf("IP %v: want the node's address on %s", n.IP, n.Iface))
	}
	switch n.Role {
	case Agent:
		errs = append(errs, checkURL("Server", n.Server))
	case Server:
		if n.Server != "" {
			errs = append(errs, fmt.Errorf("server %q on a server: want none; only agents join one", n.Server))
		}
		errs = append(errs, match("Images.CoreDNS", n.Images.CoreDNS, imageName, "an image reference with its registry"),
			match("Images.LocalPath", n.Images.LocalPath, imageName, "an image reference with its registry"),
			match("Images.Helper", n.Images.Helper, imageName, "an image reference with its registry"))
	default:
		errs = append(errs, fmt.Errorf("role %q: want %q or %q", n.Role, Server, Agent))
	}
	for _, e := range n.Exempt {
		errs = append(errs, match("Exempt", e, label, "a namespace"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("k3s: node %q: %w", n.Name, err)
	}
	return nil
}

func match(field, got string, re *regexp.Regexp, want string) error {
	if !re.MatchString(got) {
		return fmt.Errorf("%s %q: want %s", field, got, want)
	}
	return nil
}

func checkURL(field, s string) error {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" {
		return fmt.Errorf("%s %q: want scheme, host and port, such as https://10.0.0.1:6443", field, s)
	}
	return nil
}
