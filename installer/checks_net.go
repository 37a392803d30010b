package installer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/installer/host"
)

// The cluster's own ranges: of pods, of services.
var clusterRanges = config.DefaultClusterNetworks

// Ports that K3s takes (docs.k3s.io, "Requirements", and K3s's sources for
// those on loopback). VXLAN's 8472 is not used: the backend is host-gw.
var (
	agentPorts  = []uint16{6444, 10010, 10248, 10249, 10250, 10256}
	serverPorts = []uint16{2379, 2380, 2381, 2382, 6443, 10257, 10258, 10259}
)

// foreign says what each trace of another container system means here.
var foreign = map[string]struct {
	check  string
	remedy string
}{
	"k3s":        {"earlier-k3s", "remove it with k3s-uninstall.sh (back up what it holds first)"},
	"rke2":       {"earlier-kubernetes", "remove it with rke2-uninstall.sh"},
	"kubeadm":    {"earlier-kubernetes", "kubeadm reset, and remove its packages"},
	"kubelet":    {"earlier-kubernetes", "stop and remove the kubelet, then /var/lib/kubelet"},
	"microk8s":   {"earlier-kubernetes", "snap remove --purge microk8s"},
	"etcd":       {"earlier-kubernetes", "stop etcd and move its data away"},
	"cni":        {"earlier-cni", "move the files away: containerd would take the first of them for the pod network"},
	"docker":     {"container-engines", "stop and disable it, or accept that its firewall rules drop forwarded traffic (FORWARD policy DROP)"},
	"containerd": {"container-engines", "stop and disable it: K3s brings its own"},
	"crio":       {"container-engines", "stop and disable it: K3s brings containerd"},
	"podman":     {"container-engines", "it may stay; its images take space"},
}

// others judges the traces that check is about.
func others(name string, s Severity, wanted string) check {
	return check{name, "others", "", func(q question) Finding {
		var got, how []string
		for _, o := range q.Others {
			if f := foreign[o.What]; f.check == name {
				got = append(got, o.What+" at "+o.Path)
				if !slices.Contains(how, f.remedy) {
					how = append(how, f.remedy)
				}
			}
		}
		return verdict(len(got) == 0, s, list(got), wanted, strings.Join(how, "; "))
	}}
}

// netChecks are about names, addresses, ports and neighbours.
var netChecks = []check{
	{"node-name", "hostname", "", func(q question) Finding {
		n := q.a.Cluster.name(q.Facts)
		return verdict(nodeRE.MatchString(n), Refusal, fmt.Sprintf("%q", n), "lower-case letters, digits and hyphens, at most 63", "hostnamectl set-hostname NAME, or answer cluster.node")
	}},
	{"name-resolves", "names", Warning, func(q question) Finding {
		got := fmt.Sprintf("%s in /etc/hosts: %s; myhostname: %s", q.Hostname, list(q.Names.Self), yes(q.Names.Fallback))
		return verdict(len(q.Names.Self) > 0 || q.Names.Fallback, Warning, got, "a name that resolves without DNS", "add to /etc/hosts: "+q.a.Cluster.address(q.Facts)+" "+q.Hostname)
	}},
	{"node-address", "addresses", "", func(q question) Finding {
		a := q.a.Cluster.address(q.Facts)
		f := verdict(slices.Contains(q.Addresses, a), Refusal, fmt.Sprintf("%q", a), "one of this host's: "+list(q.Addresses), "answer cluster.address; a host without a network gets one by: ip link add clawbox0 type dummy; ip addr add 10.99.0.1/24 dev clawbox0; ip link set clawbox0 up")
		if f.Severity == OK && q.a.Cluster.iface(q.Facts) == "" {
			return verdict(false, Refusal, a+" on no network", "an interface with a route to its network", "give the address its prefix, such as /24")
		}
		return f
	}},
	{"default-route", "routes", "", func(q question) Finding {
		return verdict(len(q.Routes) > 0, Refusal, "none", "a default route, by which Kubernetes finds its address; it may lead nowhere",
			"ip route add default dev "+orElse(q.a.Cluster.iface(q.Facts), "clawbox0")+" metric 10000 (and in the network's configuration, so that it comes back)")
	}},
	{"address-overlap", "networks", "", func(q question) Finding {
		var hit []string
		for _, n := range q.Networks {
			p, err := netip.ParsePrefix(n.Prefix)
			for _, r := range clusterRanges {
				// A running cluster has these routes itself.
				if err == nil && p.Overlaps(netip.MustParsePrefix(r)) && !ownIface(n.Iface) && !(q.Earlier.Active && podRoute(n, p)) {
					hit = append(hit, n.Prefix+" on "+n.Iface)
				}
			}
		}
		return verdict(len(hit) == 0, Refusal, list(hit), "networks apart from "+list(clusterRanges), "renumber the network: pods would not reach it, or it not them")
	}},
	{"cluster-ports", "listening", "", clusterPorts},
	{"firewall", "firewalls", Warning, func(q question) Finding {
		return verdict(len(q.Firewalls) == 0, Warning, list(q.Firewalls), "none, or one that knows the cluster", "let "+strings.Join(clusterRanges, " and ")+" through, and 6443 and 10250 between the nodes: ufw allow from "+clusterRanges[0])
	}},
	{"packet-filter", "tools", Warning, func(q question) Finding {
		return verdict(q.Tools["iptables"] != "" || q.Tools["nft"] != "", Warning, "neither iptables nor nft", "one of them", "K3s's release brings its own iptables; a build from source needs the package")
	}},
	{"node-clock", "clock", Warning, func(q question) Finding {
		bad := q.a.Cluster.Role == RoleAgent && !q.ClockSync
		return verdict(!bad, Warning, "synchronised: "+yes(q.ClockSync), "one time on all nodes", "point chrony or systemd-timesyncd at the server: certificates and leases are compared by time")
	}},
	others("earlier-k3s", Refusal, "no K3s that clawbox did not place"),
	others("earlier-kubernetes", Refusal, "no other Kubernetes"),
	others("earlier-cni", Refusal, "an empty /etc/cni/net.d"),
	others("container-engines", Warning, "no other container engine"),
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// ownIface says whether an interface is the cluster's.
func ownIface(name string) bool {
	return name == "cni0" || strings.HasPrefix(name, "flannel")
}

// podRoute says whether a route is one that flannel makes on a node, to the pods
// of another: their /24, by that node's address (backend host-gw).
func podRoute(n host.Network, p netip.Prefix) bool {
	return n.Via != "" && p.Bits() == 24 && netip.MustParsePrefix(clusterRanges[0]).Contains(p.Addr())
}

// clusterPorts refuses ports of K3s that somebody listens on. A K3s of ours
// that runs already is no stranger.
func clusterPorts(q question) Finding {
	want := agentPorts
	if q.a.Cluster.Role == RoleServer {
		want = slices.Concat(agentPorts, serverPorts)
	}
	var taken []string
	for _, l := range q.Listening {
		if a, err := netip.ParseAddrPort(l); err == nil && slices.Contains(want, a.Port()) {
			taken = append(taken, l)
		}
	}
	s := Refusal
	if q.Earlier.Active {
		s = Note
	}
	return verdict(len(taken) == 0, s, "in use: "+list(taken), "K3s's ports free", "stop what listens there (ss -ltnp)")
}

// clusterChecks hold the answers against the release.
var clusterChecks = []check{
	{"cluster-root", "", "", func(q question) Finding {
		return verdict(q.a.Root == "/", Warning, q.a.Root, "/", "K3s reads /etc/rancher/k3s: run it where this root is /, as in an image or a chroot")
	}},
	{"node-programs", "", "", func(q question) Finding {
		var miss []string
		for _, p := range []string{k3sPath, clusterPath, runtimePath} {
			if it, ok := q.r.program(p); !ok || it.perm()&0o100 == 0 {
				miss = append(miss, p)
			}
		}
		return lacking("missing or not executable:", miss, "file items with path "+list([]string{k3sPath, clusterPath, runtimePath})+", mode 0755", "rebuild the bundle with them, or choose the profile solo")
	}},
	{"k3s-version", "", "", func(q question) Finding {
		v := q.r.k3sVersion()
		return verdict(v != "", Refusal, "a release that does not say which K3s it has", "components: [{name: k3s, version: 1.35.0+k3s1}] in the recipe", "rebuild the bundle with it: which release may follow on which is decided by it")
	}},
	{"node-images", "", "", func(q question) Finding {
		var names, miss []string
		for _, i := range nodeImages {
			names = append(names, i.item)
			if _, ok := q.r.item("image", i.item); !ok {
				miss = append(miss, i.item)
			}
		}
		return lacking("not in the release:", miss, "images "+list(names), "rebuild the bundle with them: nothing is pulled from elsewhere")
	}},
	{"chart-images", "", "", func(q question) Finding {
		return lacking("not in the release:", q.a.lackingImages(q.Facts, q.r), "the images that the answers ask for", "rebuild the bundle with them, or leave that part out")
	}},
	{"serving", "", "", func(q question) Finding {
		var miss []string
		for _, s := range q.a.Cluster.Models {
			if _, ok := q.r.item("model", s.Model); !ok {
				miss = append(miss, s.Model)
			}
		}
		return lacking("models not in the release:", miss, "models of the release", "correct cluster.models")
	}},
	{"tenants", "memory", "", func(q question) Finding {
		var cpu, mem float64
		for _, t := range q.a.Cluster.Tenants {
			c, m := t.bounds()
			cpu, mem = cpu+c, mem+m
		}
		got := fmt.Sprintf("%d tenants with %.1f cores and %.1f GiB in all", len(q.a.Cluster.Tenants), cpu, mem/(1<<30))
		fits := cpu <= float64(q.CPUs) && mem <= float64(q.Memory.Total)
		return verdict(fits, Warning, got, fmt.Sprintf("at most this node's %d cores and %.1f GiB", q.CPUs, float64(q.Memory.Total)/(1<<30)), "quotas promise more than one node has: lower them, or add nodes")
	}},
}
