package config

import "net/netip"

// DefaultClusterNetworks are those of the pods and of the services of the
// cluster that clawbox installs (airgap-manifests/k3s).
var DefaultClusterNetworks = []string{"10.42.0.0/16", "10.43.0.0/16"}

// ClusterPrefixes are ClusterNetworks of a valid c, parsed; none where this host
// is no node of a cluster.
func (c Config) ClusterPrefixes() (out []netip.Prefix) {
	nets := c.ClusterNetworks
	if len(nets) == 0 && c.Cluster != nil {
		nets = DefaultClusterNetworks
	}
	for _, s := range nets {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
