// Flannel is the CNI plugin that K3s's network configuration names: it hands a
// pod to the plugins `bridge` and `host-local`, with this node's share of the
// pod network.
//
// K3s's flannel daemon writes that share to /run/flannel/subnet.env:
//
//	FLANNEL_NETWORK=10.42.0.0/16
//	FLANNEL_SUBNET=10.42.1.1/24
//	FLANNEL_MTU=1500
//	FLANNEL_IPMASQ=true
//
// What was handed on is kept in /var/lib/cni/flannel/<container>-<interface>,
// so that DEL takes the same back after the node got another share.
//
// It does IPv4 and is enough for --flannel-backend=host-gw, where routes
// between nodes are the daemon's. Source: CNI specification 1.0.0, sections 2
// and 4 (delegated plugins).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	subnetEnv = "/run/flannel/subnet.env"
	stateDir  = "/var/lib/cni/flannel"
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check}, version.All, "CNI plugin flannel, for K3s's host-gw backend")
}

func add(a *skel.CmdArgs) error {
	env, err := os.ReadFile(subnetEnv)
	if err != nil {
		return fmt.Errorf("this node has no share of the pod network yet: %w", err)
	}
	plugin, conf, err := delegate(a.StdinData, string(env))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(state(a), conf, 0o600); err != nil {
		return err
	}
	res, err := invoke.DelegateAdd(context.Background(), plugin, conf, nil)
	if err != nil {
		return err
	}
	return res.Print()
}

// del takes back what add gave. A pod that add never saw, or del saw already, is
// no error: the specification asks for that.
func del(a *skel.CmdArgs) error {
	return again(a, func(plugin string, conf []byte) error {
		if err := invoke.DelegateDel(context.Background(), plugin, conf, nil); err != nil {
			return err
		}
		return os.Remove(state(a))
	})
}

func check(a *skel.CmdArgs) error {
	return again(a, func(plugin string, conf []byte) error {
		return invoke.DelegateCheck(context.Background(), plugin, conf, nil)
	})
}

// again calls do with what add handed on.
func again(a *skel.CmdArgs, do func(plugin string, conf []byte) error) error {
	conf, err := os.ReadFile(state(a))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var n types.PluginConf
	if err := json.Unmarshal(conf, &n); err != nil {
		return fmt.Errorf("%s: %w", state(a), err)
	}
	return do(n.Type, conf)
}

func state(a *skel.CmdArgs) string {
	return filepath.Join(stateDir, filepath.Base(a.ContainerID)+"-"+filepath.Base(a.IfName))
}

// delegate makes the delegate's configuration out of ours and the node's share,
// and returns its plugin's name, too.
func delegate(conf []byte, env string) (string, []byte, error) {
	var n struct {
		types.PluginConf
		Delegate map[string]any `json:"delegate"`
	}
	if err := json.Unmarshal(conf, &n); err != nil {
		return "", nil, fmt.Errorf("network configuration: %w", err)
	}
	s, err := parseSubnet(env)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", subnetEnv, err)
	}
	d := map[string]any{"type": "bridge", "isGateway": true}
	maps.Copy(d, n.Delegate)
	plugin, ok := d["type"].(string)
	if !ok || plugin == "" {
		return "", nil, fmt.Errorf("network configuration: delegate.type %v: want the name of a plugin", d["type"])
	}
	d["name"], d["cniVersion"], d["mtu"] = n.Name, n.CNIVersion, s.mtu
	d["ipMasq"] = !s.masq // one of the two does it
	d["ipam"] = map[string]any{
		"type":   "host-local",
		"ranges": [][]any{{map[string]string{"subnet": s.subnet.Masked().String()}}},
		"routes": []any{map[string]string{"dst": s.network.String()}},
	}
	out, err := json.Marshal(d)
	return plugin, out, err
}

// share is this node's part of the pod network.
type share struct {
	network, subnet netip.Prefix
	mtu             int
	masq            bool
}

// parseSubnet reads subnet.env. Keys that it doesn't know (IPv6's) are left
// alone; the four that it needs must be there.
func parseSubnet(env string) (share, error) {
	kv := map[string]string{}
	for line := range strings.Lines(env) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			kv[k] = v
		}
	}
	var s share
	for _, f := range []struct {
		key string
		set func(v string) (err error)
	}{
		{"FLANNEL_NETWORK", func(v string) (err error) { s.network, err = netip.ParsePrefix(v); return }},
		{"FLANNEL_SUBNET", func(v string) (err error) { s.subnet, err = netip.ParsePrefix(v); return }},
		{"FLANNEL_MTU", func(v string) (err error) { s.mtu, err = strconv.Atoi(v); return }},
		{"FLANNEL_IPMASQ", func(v string) (err error) { s.masq, err = strconv.ParseBool(v); return }},
	} {
		if err := f.set(kv[f.key]); err != nil {
			return share{}, fmt.Errorf("%s=%q: %w", f.key, kv[f.key], err)
		}
	}
	if !s.network.Contains(s.subnet.Addr()) {
		return share{}, fmt.Errorf("FLANNEL_SUBNET %s is not in FLANNEL_NETWORK %s", s.subnet, s.network)
	}
	return s, nil
}
