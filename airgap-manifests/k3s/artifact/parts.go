package artifact

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

const (
	k3sModule        = "github.com/k3s-io/k3s"
	containerdModule = "github.com/containerd/containerd/v2"
	crictlModule     = "sigs.k8s.io/cri-tools"
	cniPlugins       = "github.com/containernetworking/plugins/plugins/"
	ours             = "github.com/clawbox/clawbox/airgap-manifests/k3s/runtime/"
)

// part is what one nested module gives with one set of flags.
type part struct {
	name   string // its folder in Out/parts
	module string // its folder in Modules
	progs  []prog
	tags   []string
	ld     []string // linker flags
	env    []string // CGO_ENABLED and CGO_CFLAGS
	libs   []string // C libraries that are linked in, by the compiler's name
}

// prog is a main package. Image: it goes into an image, not into bin.
type prog struct {
	pkg, out string
	image    bool
}

func (p part) cgo() bool { return len(p.env) > 0 && p.env[0] == "CGO_ENABLED=1" }

// static makes cgo's programs independent of the host's C library. netgo and osusergo
// take from it the last two things that it would load at run time.
var static = []string{"-linkmode", "external", "-extldflags", "-static"}

// k3sTags are those of K3s's own build script, but for netcgo: see static.
var k3sTags = []string{
	"static_build", "ctrd", "netgo", "osusergo", "providerless", "urfave_cli_no_docs", "sqlite_omit_load_extension", "apparmor", "seccomp",
}

var sqlite = []string{"CGO_ENABLED=1", "CGO_CFLAGS=-DSQLITE_ENABLE_DBSTAT_VTAB=1 -DSQLITE_USE_ALLOCA=1"}

// parts lists what a version is made of, the cheap parts first.
func (b *builder) parts(r release) ([]part, error) {
	stamps, err := b.stamps(r)
	if err != nil {
		return nil, err
	}
	pure := []string{"CGO_ENABLED=0"}
	return []part{
		{name: "cni", module: "runtime", env: pure, progs: []prog{
			{pkg: cniPlugins + "ipam/host-local", out: "host-local"},
			{pkg: cniPlugins + "main/bridge", out: "bridge"},
			{pkg: cniPlugins + "main/loopback", out: "loopback"},
			{pkg: cniPlugins + "meta/bandwidth", out: "bandwidth"},
			{pkg: cniPlugins + "meta/firewall", out: "firewall"},
			{pkg: cniPlugins + "meta/portmap", out: "portmap"},
			{pkg: ours + "flannel", out: "flannel"},
			{pkg: ours + "pause", out: "pause", image: true},
		}},
		{
			name: "runc", module: "runtime", env: []string{"CGO_ENABLED=1"}, tags: []string{"seccomp", "apparmor", "netgo", "osusergo"},
			ld: static, libs: []string{"libseccomp.a"}, progs: []prog{{pkg: "github.com/opencontainers/runc", out: "runc"}},
		},
		{name: "coredns", module: "coredns", env: pure, progs: []prog{{pkg: "github.com/coredns/coredns", out: "coredns", image: true}}},
		{name: "local-path", module: "local-path", env: pure, progs: []prog{
			{pkg: "github.com/rancher/local-path-provisioner", out: "local-path-provisioner", image: true},
		}},
		{name: "k3s-" + b.Version, module: r.module, env: sqlite, tags: k3sTags, ld: append(stamps, static...), progs: []prog{
			{pkg: containerdModule + "/cmd/containerd-shim-runc-v2", out: "containerd-shim-runc-v2"},
			{pkg: k3sModule + "/cmd/server", out: "k3s"},
		}},
	}, nil
}

// mod is what `go list -m -json` says of a module.
type mod struct {
	Version, Dir string
	Replace      *mod
}

// module asks a nested module's graph.
func (b *builder) module(nested, name string) (mod, error) {
	if _, err := b.goTool(nested, nil, "mod", "download", name); err != nil {
		return mod{}, err
	}
	out, err := b.goTool(nested, nil, "list", "-mod=readonly", "-m", "-json", name)
	if err != nil {
		return mod{}, err
	}
	var m mod
	if err := json.Unmarshal(out, &m); err != nil {
		return mod{}, fmt.Errorf("go list -m %s: %w", name, err)
	}
	if m.Replace != nil {
		m = *m.Replace
	}
	return m, nil
}

// stamps are the linker flags that tell the program who it is; K3s compares
// some of them, and kubelet reports others. Source: K3s's scripts/build and
// scripts/version.sh; the commit and its time stand in the module's
// pseudo-version.
func (b *builder) stamps(r release) ([]string, error) {
	ver := map[string]mod{}
	for _, name := range []string{k3sModule, containerdModule, crictlModule} {
		m, err := b.module(r.module, name)
		if err != nil {
			return nil, err
		}
		ver[name] = m
	}
	pseudo := ver[k3sModule].Version
	at, err := module.PseudoVersionTime(pseudo)
	if err != nil {
		return nil, fmt.Errorf("version %q of %s: want a pseudo-version: %w", pseudo, k3sModule, err)
	}
	rev, err := module.PseudoVersionRev(pseudo)
	if err != nil {
		return nil, err
	}
	golang, err := b.goTool(r.module, nil, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	x := []string{
		k3sModule + "/pkg/version.UpstreamGolang=" + strings.TrimSpace(string(golang)),
		k3sModule + "/pkg/version.Version=" + r.version,
		k3sModule + "/pkg/version.GitCommit=" + rev[:8],
		crictlModule + "/pkg/version.Version=" + ver[crictlModule].Version,
		containerdModule + "/version.Version=" + ver[containerdModule].Version,
		containerdModule + "/version.Package=" + path.Join("github.com/k3s-io", "containerd"),
	}
	for _, pkg := range []string{"k8s.io/client-go/pkg/version", "k8s.io/component-base/version"} {
		x = append(x, pkg+".gitVersion="+r.version, pkg+".gitCommit="+rev, pkg+".gitTreeState=clean", pkg+".buildDate="+at.UTC().Format(time.RFC3339))
	}
	var flags []string
	for _, s := range x {
		flags = append(flags, "-X", s)
	}
	return flags, nil
}
