package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// networks reads the prefixes that this host has routes to.
func (g *gatherer) networks() error {
	s, err := g.read("/proc/net/route")
	if err != nil {
		return err
	}
	for i, l := range strings.Split(s, "\n") {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask …, words in host order
		f := strings.Fields(l)
		if i == 0 || len(f) < 8 || f[7] == "00000000" {
			continue
		}
		a, err := parseAddr(f[1] + ":0")
		if err != nil {
			return err
		}
		m, err := hex.DecodeString(f[7])
		if err != nil {
			return fmt.Errorf("/proc/net/route: mask %q: %w", f[7], err)
		}
		n := 0
		for _, b := range m {
			n += bits.OnesCount8(b)
		}
		w := Network{Prefix: netip.PrefixFrom(a.Addr(), n).String(), Iface: f[0]}
		if f[2] != "00000000" {
			via, err := parseAddr(f[2] + ":0")
			if err != nil {
				return err
			}
			w.Via = via.Addr().String()
		}
		if !slices.Contains(g.f.Networks, w) {
			g.f.Networks = append(g.f.Networks, w)
		}
	}
	return nil
}

// addresses reads the local ones out of the routing tries, where a leaf
// "|-- 10.0.0.7" is followed by "/32 host LOCAL".
func (g *gatherer) addresses() error {
	s, err := g.read("/proc/net/fib_trie")
	if err != nil {
		return err
	}
	last := ""
	for l := range strings.Lines(s) {
		f := strings.Fields(l)
		switch {
		case len(f) == 2 && f[0] == "|--":
			last = f[1]
		case len(f) == 3 && f[0] == "/32" && f[1] == "host" && f[2] == "LOCAL":
			if a, err := netip.ParseAddr(last); err == nil && !a.IsLoopback() {
				g.f.Addresses = append(g.f.Addresses, a.String())
			}
		}
	}
	slices.Sort(g.f.Addresses)
	g.f.Addresses = slices.Compact(g.f.Addresses)
	return nil
}

// names looks for the hostname where no DNS is needed to find it.
func (g *gatherer) names() error {
	s, err := g.read("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for l := range strings.Lines(s) {
		l, _, _ = strings.Cut(l, "#")
		f := strings.Fields(l)
		if len(f) > 1 && slices.Contains(f[1:], g.f.Hostname) {
			g.f.Names.Self = append(g.f.Names.Self, f[0])
		}
	}
	s, err = g.read("/etc/nsswitch.conf")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for l := range strings.Lines(s) {
		if db, how, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(db) == "hosts" {
			g.f.Names.Fallback = slices.Contains(strings.Fields(how), "myhostname")
		}
	}
	return err
}

// firewalls finds the services that filter, by what enables them.
func (g *gatherer) firewalls() error {
	if s, err := g.read("/etc/ufw/ufw.conf"); err == nil {
		for l := range strings.Lines(s) {
			if strings.EqualFold(strings.TrimSpace(l), "ENABLED=yes") {
				g.f.Firewalls = append(g.f.Firewalls, "ufw")
			}
		}
	}
	for _, t := range []struct{ name, unit string }{{"firewalld", "firewalld.service"}, {"nftables", "nftables.service"}, {"iptables-persistent", "netfilter-persistent.service"}} {
		m, err := filepath.Glob(filepath.Join(g.sys, "/etc/systemd/system/*.wants", t.unit))
		if err != nil {
			return err
		}
		if len(m) > 0 {
			g.f.Firewalls = append(g.f.Firewalls, t.name)
		}
	}
	return nil
}
