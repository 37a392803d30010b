package policies

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// features are what require.features may name beyond the Landlock ABI, the
// tier and the kernel's release, each with what it promises.
var features = map[string]string{
	"cgroup2":      "the unified cgroup hierarchy with its controllers",
	"disk-quota":   "budgets.disk and budgets.inodes bound the writable folders",
	"disk-rate":    "budgets.diskRead and budgets.diskWrite hold for buffered writes too",
	"exec-deny":    "a program that is not listed gets EPERM instead of a signal",
	"memfd-noexec": "nothing runs from anonymous memory, whatever seccomp lets through",
}

// Features lists the names that require.features knows. The host either shows
// that it has a feature, or the agent is not started.
func Features() []string { return slices.Sorted(maps.Keys(features)) }

func (d *decoder) features(n *yaml.Node) []string {
	out := d.strs(n, "require.features", func(c *yaml.Node, s string) bool {
		if features[s] == "" {
			d.fail(c, quote(s), "one of "+strings.Join(Features(), ", ")+" for require.features", advice(s, Features()))
		}
		return features[s] != ""
	})
	slices.Sort(out)
	return out
}

var releaseForm = regexp.MustCompile(`^[1-9][0-9]?\.(0|[1-9][0-9]{0,2})$`)

// anyKernel is how the canonical form writes "no demand".
const anyKernel = "any"

// kernel reads a release; YAML takes 6.10 for a number, so its text counts.
func (d *decoder) kernel(n *yaml.Node) string {
	number := n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!float")
	switch {
	case number && n.Value == anyKernel:
		return ""
	case !number || !releaseForm.MatchString(n.Value):
		d.fail(n, describe(n), "a kernel release such as 6.1 for require.kernel", `write major and minor number, or the word "any"`)
		return ""
	}
	return n.Value
}

func formatKernel(s string) string {
	if s == "" {
		return anyKernel
	}
	return scalar(s)
}

// limit reads a size of which none at all is a choice too.
func (d *decoder) limit(n *yaml.Node, what string, least int64) int64 {
	if n.Kind == yaml.ScalarNode && n.Value == unlimited {
		return 0
	}
	return d.size(n, what+` (or the word "unlimited")`, least)
}

func formatLimit(n int64) string {
	if n == 0 {
		return unlimited
	}
	return formatSize(n)
}
