package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Host user ids. Everything below minUID belongs to the system; 65534 is
// nobody and 65535 means "no change" to chown, so a range may not cover them.
const (
	minUID = 1000
	maxUID = 1<<31 - 2
	nobody = 65534
	noUID  = 65535

	// UIDCount is how many ids sandboxes get from UIDBase on.
	UIDCount = 1024
	// DefaultUIDBase lies above the ranges that distributions hand out:
	// people (1000-60000), systemd's dynamic users (61184-65519) and the first
	// entries of /etc/subuid (from 100000, 65536 each).
	DefaultUIDBase = 400000
)

// Tiers are the guard's levels, strongest first.
var Tiers = []string{"T1", "T2", "T3", "T4"}

var (
	nameRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	envRE    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=[^\x00]*$`)
	digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hostRE   = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,62})?(\.[a-z0-9_]([a-z0-9_-]{0,62})?)*$`)
	policyRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// Validate says everything that is wrong with c, one line each, or nil.
func (c Config) Validate() error {
	return errors.Join(
		c.head(), c.Release.validate(), c.Paths.validate(),
		Loopback("registry", c.Registry), c.Engine.validate(c.UIDBase),
		c.addresses(), c.numbers(), c.upstreams(), c.credentials(), ValidHosts(c.Hosts), ValidAgents(c.Agents), c.Cluster.validate(), c.clusterNetworks(),
	)
}

// bad is the one form of a message here.
func bad(field string, got any, wanted string) error {
	return fmt.Errorf("%s: got %q; wanted %s", field, fmt.Sprint(got), wanted)
}

func (c Config) head() error {
	if c.APIVersion != APIVersion {
		return bad("apiVersion", c.APIVersion, APIVersion)
	}
	if c.Kind != Kind {
		return bad("kind", c.Kind, Kind)
	}
	return nil
}

func (r Release) validate() error {
	var errs []error
	if r.Name == "" || strings.ContainsFunc(r.Name, isControl) {
		errs = append(errs, bad("release.name", r.Name, "the release's name"))
	}
	if r.Version == "" || strings.ContainsFunc(r.Version, isControl) {
		errs = append(errs, bad("release.version", r.Version, "a version such as 0.1.0"))
	}
	if r.Sequence < 1 {
		errs = append(errs, bad("release.sequence", r.Sequence, "1 or more"))
	}
	if !digestRE.MatchString(r.Digest) {
		errs = append(errs, bad("release.digest", r.Digest, "sha256: and 64 hexadecimal digits"))
	}
	return errors.Join(errs...)
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func (p Paths) validate() error {
	var errs []error
	seen := map[string]string{}
	for _, f := range []struct{ name, path string }{
		{"slot", p.Slot},
		{"store", p.Store},
		{"state", p.State},
		{"ledger", p.Ledger},
		{"run", p.Run},
		{"keys", p.Keys},
		{"receipts", p.Receipts},
	} {
		name := "paths." + f.name
		errs = append(errs, AbsPath(name, f.path))
		if other, ok := seen[f.path]; ok {
			errs = append(errs, bad(name, f.path, "a folder of its own: "+other+" is there already"))
		}
		seen[f.path] = name
	}
	return errors.Join(errs...)
}

// AbsPath refuses a path that is relative, unclean, or the root itself.
func AbsPath(field, p string) error {
	if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" || strings.ContainsFunc(p, isControl) {
		return bad(field, p, "a clean absolute path, such as /var/lib/clawbox")
	}
	return nil
}

// Loopback refuses an address that is not a literal loopback address with a
// port: what listens here has no authentication of its own.
func Loopback(field, addr string) error {
	const want = "a loopback address and port, such as 127.0.0.1:5000"
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || !ap.Addr().IsLoopback() || ap.Addr().Zone() != "" || ap.Port() == 0 {
		return bad(field, addr, want)
	}
	return nil
}

func (e Engine) validate(base int) error {
	if e.Binary == "" {
		if e.Listen != "" || len(e.Models) > 0 || e.UID != 0 {
			return bad("engine.binary", "", "the engine's program, because engine.listen, models or uid is set; set it or remove those")
		}
		return nil
	}
	errs := []error{AbsPath("engine.binary", e.Binary), Loopback("engine.listen", e.Listen)}
	for i, m := range e.Models {
		if m == "" || strings.ContainsFunc(m, isControl) {
			errs = append(errs, bad(fmt.Sprintf("engine.models[%d]", i), m, "a name in the store"))
		}
	}
	if e.UID < minUID || e.UID > maxUID || e.UID == nobody || e.UID == noUID || (e.UID >= base && e.UID < base+UIDCount) {
		errs = append(errs, bad("engine.uid", e.UID, fmt.Sprintf("a user id of its own from %d on, outside the sandboxes' %d-%d", minUID, base, base+UIDCount-1)))
	}
	return errors.Join(errs...)
}

func (c Config) addresses() error {
	if c.Engine.Listen != "" && c.Engine.Listen == c.Registry {
		return bad("engine.listen", c.Engine.Listen, "another port than the registry's")
	}
	return nil
}

func (c Config) numbers() error {
	var errs []error
	if c.HoldSeconds < 1 || c.HoldSeconds > 86400 {
		errs = append(errs, bad("holdSeconds", c.HoldSeconds, "1 to 86400 seconds"))
	}
	if c.Warm < -1 || c.Warm > maxWarm {
		errs = append(errs, bad("warm", c.Warm, fmt.Sprintf("1 to %d launchers, 0 for the default, or -1 for none", maxWarm)))
	}
	if c.RecordMiB < 0 || c.RecordMiB > 1<<20 {
		errs = append(errs, bad("recordMiB", c.RecordMiB, "1 to 1048576 MiB, or 0 for the default"))
	}
	errs = append(errs, UIDRange(c.UIDBase), c.serviceUIDs())
	if !slices.Contains(Tiers, c.AcceptTier) {
		errs = append(errs, bad("acceptTier", c.AcceptTier, "one of "+strings.Join(Tiers, ", ")))
	}
	return errors.Join(errs...)
}

// UIDRange refuses a base whose UIDCount ids touch ids that mean something else.
func UIDRange(base int) error {
	end := base + UIDCount - 1
	if base < minUID || end > maxUID || (base <= noUID && end >= nobody) {
		return bad("uidBase", base, fmt.Sprintf("%d or more, with %d ids that do not touch %d and %d", minUID, UIDCount, nobody, noUID))
	}
	return nil
}

func (c Config) upstreams() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		u := c.Upstreams[name]
		f := "upstreams." + name
		if !nameRE.MatchString(name) || name == "local" {
			errs = append(errs, bad(f, name, `a lower-case name other than "local", which is the embedded engine`))
		}
		errs = append(errs, u.validate(f))
	}
	return errors.Join(errs...)
}

func (c Config) credentials() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		if !nameRE.MatchString(name) {
			errs = append(errs, bad("credentials."+name, name, "a lower-case name"))
		}
		errs = append(errs, AbsPath("credentials."+name+".keyFile", c.Credentials[name].KeyFile))
	}
	return errors.Join(errs...)
}

func (u Upstream) validate(f string) error {
	var errs []error
	v, err := url.Parse(u.URL)
	switch {
	case err != nil || v.Host == "" || v.User != nil || v.RawQuery != "" || v.Fragment != "":
		errs = append(errs, bad(f+".url", redact(u.URL), "https://host/base without user, query or fragment"))
	case v.Scheme == "http" && !u.Local, v.Scheme != "http" && v.Scheme != "https":
		errs = append(errs, bad(f+".url", v.Redacted(), "https; plain http only where local: true"))
	}
	if u.KeyFile != "" {
		errs = append(errs, AbsPath(f+".keyFile", u.KeyFile))
	}
	return errors.Join(errs...)
}

// redact keeps a password that was put into a URL out of messages and logs.
func redact(raw string) string {
	if i := strings.LastIndex(raw, "@"); i >= 0 {
		return "…" + raw[i:]
	}
	return raw
}

func (k *Cluster) validate() error {
	if k == nil {
		return nil
	}
	errs := []error{AbsPath("cluster.kubeconfig", k.Kubeconfig)}
	if !nameRE.MatchString(k.Namespace) || k.Namespace == "default" || strings.HasPrefix(k.Namespace, "kube-") {
		errs = append(errs, bad("cluster.namespace", k.Namespace, "a namespace of the agents' own, such as clawbox-agents"))
	}
	if !hostRE.MatchString(k.Node) {
		errs = append(errs, bad("cluster.node", k.Node, "this host's name in the cluster"))
	}
	host, port, found := strings.Cut(k.Registry, ":")
	if n, err := strconv.ParseUint(port, 10, 16); !hostRE.MatchString(host) || found && (err != nil || n == 0) {
		errs = append(errs, bad("cluster.registry", k.Registry, "a host, and a port if it has one, such as clawbox.internal"))
	}
	return errors.Join(errs...)
}

func (c Config) clusterNetworks() error {
	var errs []error
	for i, s := range c.ClusterNetworks {
		if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() || p.Addr().Is4In6() || p.Bits() == 0 {
			errs = append(errs, bad(fmt.Sprintf("clusterNetworks[%d]", i), s, "a network's first address and its length, such as 10.42.0.0/16"))
		}
	}
	return errors.Join(errs...)
}

// ValidHosts checks a table of host name to address.
func ValidHosts(hosts map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		addr := hosts[name]
		if !hostRE.MatchString(name) || len(name) > 253 || net.ParseIP(name) != nil {
			errs = append(errs, bad("hosts", name, "a host name in lower case, such as api.example.com"))
		}
		if a, err := netip.ParseAddr(addr); err != nil || a.Zone() != "" {
			errs = append(errs, bad("hosts."+name, addr, "an IP address, such as 10.0.0.7"))
		}
	}
	return errors.Join(errs...)
}

// ValidAgents checks the agents' list: names that are unique and fit a host
// name, an image, a policy that cannot point out of the slot, and sound
// environment entries.
func ValidAgents(agents []Agent) error {
	var errs []error
	seen := map[string]bool{}
	for i, a := range agents {
		f := fmt.Sprintf("agents[%d]", i)
		if !nameRE.MatchString(a.Name) || seen[a.Name] {
			errs = append(errs, bad(f+".name", a.Name, "a unique name of lower-case letters, digits and hyphens"))
		}
		seen[a.Name] = true
		errs = append(errs, a.validate(f))
	}
	return errors.Join(errs...)
}

func (a Agent) validate(f string) error {
	var errs []error
	if a.Image == "" || strings.ContainsFunc(a.Image, isControl) {
		errs = append(errs, bad(f+".image", a.Image, "an image's name in the store"))
	}
	if !policyRE.MatchString(a.Policy) {
		errs = append(errs, bad(f+".policy", a.Policy, "a preset, or a file name in the slot's policies folder"))
	}
	for _, e := range a.Env {
		if !envRE.MatchString(e) {
			name, _, _ := strings.Cut(e, "=")
			errs = append(errs, bad(f+".env", name, "NAME=value"))
		}
	}
	for _, v := range a.Args {
		if strings.ContainsRune(v, 0) {
			errs = append(errs, bad(f+".args", v, "text without NUL"))
		}
	}
	return errors.Join(errs...)
}
