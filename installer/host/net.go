package host

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// routes finds interfaces with a default route: none is what an offline host
// should have, so this only informs.
func (g *gatherer) routes() error {
	seen := map[string]bool{}
	s, err := g.read("/proc/net/route")
	if err != nil {
		return err
	}
	for l := range strings.Lines(s) {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask …
		if f := strings.Fields(l); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			seen[f[0]] = true
		}
	}
	s, err = g.read("/proc/net/ipv6_route")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for l := range strings.Lines(s) {
		// dest prefixlen source prefixlen nexthop metric ref use flags iface;
		// every host has an unreachable default on lo.
		if f := strings.Fields(l); len(f) == 10 && f[1] == "00" && f[9] != "lo" && strings.Trim(f[0], "0") == "" {
			seen[f[9]] = true
		}
	}
	for name := range seen {
		g.f.Routes = append(g.f.Routes, name)
	}
	slices.Sort(g.f.Routes)
	return nil
}

// listening reads the kernel's TCP tables; state 0A is LISTEN.
func (g *gatherer) listening() error {
	for _, name := range []string{"tcp", "tcp6"} {
		s, err := g.read("/proc/net/" + name)
		if name == "tcp6" && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for l := range strings.Lines(s) {
			f := strings.Fields(l)
			if len(f) < 4 || f[3] != "0A" {
				continue
			}
			a, err := parseAddr(f[1])
			if err != nil {
				return fmt.Errorf("/proc/net/%s: %w", name, err)
			}
			g.f.Listening = append(g.f.Listening, a.String())
		}
	}
	slices.Sort(g.f.Listening)
	g.f.Listening = slices.Compact(g.f.Listening)
	return nil
}

// parseAddr reads "0100007F:1388": 32-bit words in host order, then the port.
func parseAddr(s string) (netip.AddrPort, error) {
	a, p, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(a)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	port, err := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}

// uids collects the ids that somebody has: users, and ranges for containers.
func (g *gatherer) uids() error {
	for _, t := range []struct {
		file         string
		first, count int // field numbers; count < 0: one id
	}{{"/etc/passwd", 2, -1}, {"/etc/subuid", 1, 2}} {
		s, err := g.read(t.file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for l := range strings.Lines(s) {
			r, err := parseRange(strings.TrimSpace(l), t.first, t.count)
			if err != nil {
				return fmt.Errorf("%s: %w", t.file, err)
			}
			if r.First+r.Count > 1000 { // below lie the system's own, never ours
				r.Owner += " (" + t.file + ")"
				g.f.UIDs = append(g.f.UIDs, r)
			}
		}
	}
	return nil
}

func parseRange(l string, first, count int) (Range, error) {
	f := strings.Split(l, ":")
	if l == "" || l[0] == '#' || l[0] == '+' || l[0] == '-' { // comments, NIS entries
		return Range{}, nil
	}
	if len(f) <= max(first, count) {
		return Range{}, fmt.Errorf("cannot read the line %q", l)
	}
	r := Range{Owner: f[0], Count: 1}
	var err, err2 error
	r.First, err = strconv.ParseInt(f[first], 10, 64)
	if count >= 0 {
		r.Count, err2 = strconv.ParseInt(f[count], 10, 64)
	}
	return r, errors.Join(err, err2)
}

// gpus looks for NVIDIA (0x10de) display controllers (class 0x03) in sysfs.
func (g *gatherer) gpus() error {
	dirs, err := filepath.Glob(filepath.Join(g.sys, "/sys/bus/pci/devices/*"))
	for _, d := range dirs {
		attr := func(n string) string {
			b, _ := os.ReadFile(filepath.Join(d, n))
			return strings.TrimSpace(string(b))
		}
		if attr("vendor") != "0x10de" || !strings.HasPrefix(attr("class"), "0x03") {
			continue
		}
		drv, _ := os.Readlink(filepath.Join(d, "driver"))
		if drv != "" {
			drv = filepath.Base(drv)
		}
		g.f.GPUs = append(g.f.GPUs, GPU{Address: filepath.Base(d), Device: attr("device"), Driver: drv})
	}
	if v, err := g.read("/proc/driver/nvidia/version"); err == nil {
		g.f.NVIDIA, _, _ = strings.Cut(v, "\n")
	}
	return err
}
