package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// placesOf is where a process is, by controller; "" is the v2 hierarchy.
// Source: cgroups(7), "/proc/pid/cgroup".
func placesOf(pid string) (map[string]string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				own[c] = f[2]
			}
		}
	}
	return own, nil
}

// below turns a process's place into the directory of it below mount point m.
func (h *hierarchies) below(m, place string) (string, error) {
	rel, err := filepath.Rel(h.shown[m], place)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("the cgroup %s is not below what is mounted at %s (%s): mount that hierarchy's root", place, m, h.shown[m])
	}
	return filepath.Join(m, rel), nil
}

// adopt is the group of a process that a container runtime has put into
// cgroups of its own. Where controllers are in v1 hierarchies, the v2 node is
// made here and the process is moved into it.
func (h *hierarchies) adopt(pid int, parent, name string) (_ *group, err error) {
	num := strconv.Itoa(pid)
	places, err := placesOf(num)
	if err != nil {
		return nil, err
	}
	g := &group{h: h, path: parent + "/" + name, lent: map[string]string{}}
	lend := map[string]string{h.v2: ""} // mount point → controller
	if len(h.v1) > 0 {
		delete(lend, h.v2)
		for c, m := range h.v1 {
			lend[m] = c
		}
	}
	for m, c := range lend {
		if g.lent[m], err = h.below(m, places[c]); err != nil {
			return nil, err
		}
		if g.lent[m] == m {
			return nil, fmt.Errorf("the container has no cgroup of its own in %s", m)
		}
	}
	if g.lent[h.v2] != "" {
		return g, nil
	}
	if err := os.MkdirAll(g.dir(), 0o755); err != nil {
		return nil, err
	}
	if err := write(g.dir()+"/cgroup.procs", num); err != nil {
		return nil, errors.Join(fmt.Errorf("move the container into its v2 cgroup: %w", err), g.remove(0))
	}
	return g, nil
}
