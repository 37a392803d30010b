package policies

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// YAML gives the canonical form: every field, in one order, with one spelling
// per value. It parses back to a policy that differs from p in Source,
// Dialect and line numbers only. The bytes are written here and not by the
// YAML library, so that Digest never changes with the library's version.
func (p *Policy) YAML() []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("apiVersion: %s\nkind: %s\nmetadata: {name: %s}", apiVersion, kind, scalar(p.Name))
	f := p.Filesystem
	line("filesystem:\n  read: %s\n  write: %s\n  workdir: %s", flow(f.Read), flow(f.Write), scalar(f.Workdir))
	c := p.Process
	line("process:\n  exec: %s\n  spawn: %v\n  seccomp: %s", c.programs(), c.Spawn, scalar(c.Seccomp))
	line("  violation: %s\n  user: %s\n  group: %s\n  capabilities: %s", scalar(c.Violation), scalar(c.User), scalar(c.Group), flow(c.Capabilities))
	line("network:\n  default: %s\n  allow:%s\n  deny:%s", p.Network.Default, rules(p.Network.Allow), rules(p.Network.Deny))
	line("credentials:%s", credentials(p.Credentials))
	i := p.Inference
	line("inference:\n  routes:%s\n  sensitive: %s", routes(i.Routes), scalar(i.Sensitive))
	line("  budget: {requests: %s, tokens: %s}", formatBound(i.Budget.Requests), formatBound(i.Budget.Tokens))
	g := p.Budgets
	line("budgets:\n  processes: %d\n  memory: %s\n  cpu: %s", g.Processes, formatSize(g.Memory), formatCPU(g.CPU))
	line("  scratch: %s\n  openFiles: %d\n  wallTime: %s", formatSize(g.Scratch), g.OpenFiles, formatWall(g.WallTime))
	line("  disk: %s\n  inodes: %s\n  diskRead: %s\n  diskWrite: %s", formatLimit(g.Disk), formatBound(g.Inodes), formatLimit(g.DiskRead), formatLimit(g.DiskWrite))
	line("audit: {files: %s, network: %s}", scalar(p.Audit.Files), scalar(p.Audit.Network))
	r := p.Require
	line("require: {landlock: %d, tier: %s, kernel: %s, features: %s}", r.Landlock, scalar(r.Tier), formatKernel(r.Kernel), flow(r.Features))
	return b.Bytes()
}

// Digest is "sha256:" and the hexadecimal sha256 of YAML.
func (p *Policy) Digest() string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(p.YAML()))
}

// programs writes exec; a pinned one as {path, sha256}.
func (p Process) programs() string {
	out := make([]string, len(p.Exec))
	for i, e := range p.Exec {
		out[i] = scalar(e)
		if pin, ok := strings.CutPrefix(p.ExecHashes[e], "sha256:"); ok {
			out[i] = flowMap(pair{"path", scalar(e)}, pair{"sha256", scalar(pin)})
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

func credentials(cs []Credential) string {
	items := make([]string, len(cs))
	for i, c := range cs {
		items[i] = flowMap(pair{"name", scalar(c.Name)}, pair{"env", scalar(c.Env)}, pair{"header", opt(c.Header)})
	}
	return block(items)
}

func rules(rs []HostRule) string {
	items := make([]string, len(rs))
	for i, r := range rs {
		items[i] = r.YAML()
	}
	return block(items)
}

func routes(rs []Route) string {
	items := make([]string, len(rs))
	for i, r := range rs {
		items[i] = "{models: " + flow(r.Models) + ", upstream: " + scalar(r.Upstream) + "}"
	}
	return block(items)
}

func block(items []string) string {
	if len(items) == 0 {
		return " []"
	}
	return "\n    - " + strings.Join(items, "\n    - ")
}

func flow(ss []string) string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = scalar(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// plainForm is what every YAML reader takes for a string without quotes,
// save the words below.
var (
	plainForm  = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/._-]*$`)
	quotedWord = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

// scalar writes a string, between quotes unless it is plainly one. A JSON
// string is a YAML double-quoted one.
func scalar(s string) string {
	if plainForm.MatchString(s) && !quotedWord.MatchString(s) {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return strconv.QuoteToASCII(s)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
