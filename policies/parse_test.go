package policies

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const head = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: t}\n"

func mustParse(t testing.TB, src string) *Policy {
	t.Helper()
	p, err := Parse("t.yaml", []byte(src))
	if err != nil {
		t.Fatalf("%v\nin:\n%s", err, src)
	}
	return p
}

// bare drops what may differ between two writings of one policy.
func bare(p *Policy) Policy {
	q := *p
	q.Source, q.Dialect, q.at = "", "", nil
	q.Network.Allow, q.Network.Deny = slices.Clone(q.Network.Allow), slices.Clone(q.Network.Deny)
	q.Inference.Routes = slices.Clone(q.Inference.Routes)
	for _, rs := range [][]HostRule{q.Network.Allow, q.Network.Deny} {
		for i := range rs {
			rs[i].Line, rs[i].file = 0, ""
			rs[i].Calls, rs[i].DenyCalls = bareCalls(rs[i].Calls), bareCalls(rs[i].DenyCalls)
		}
	}
	q.Credentials = slices.Clone(q.Credentials)
	for i := range q.Credentials {
		q.Credentials[i].Line = 0
	}
	for i := range q.Inference.Routes {
		q.Inference.Routes[i].Line = 0
	}
	return q
}

func bareCalls(cs []CallRule) []CallRule {
	cs = slices.Clone(cs)
	for i := range cs {
		cs[i].Line = 0
	}
	return cs
}

func checkCanonical(t testing.TB, p *Policy) {
	t.Helper()
	q, err := Parse("again.yaml", p.YAML())
	if err != nil {
		t.Fatalf("canonical form does not parse: %v\n%s", err, p.YAML())
	}
	if !reflect.DeepEqual(bare(p), bare(q)) {
		t.Fatalf("canonical form changes the policy:\n%+v\n%+v", bare(p), bare(q))
	}
	if p.Digest() != q.Digest() {
		t.Fatalf("digest %s became %s", p.Digest(), q.Digest())
	}
}

// The document that docs/architecture.md and the design show.
const full = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: openclaw}
extends: production
filesystem: {read: [/usr, /bin], write: [/workspace], workdir: /workspace}
process:
  exec: [{path: /usr/local/bin/node, sha256: "` + pin + `"}, /usr/bin/]
  spawn: true
  seccomp: default
  violation: deny
  user: 1500
  group: own
  capabilities: [NET_BIND_SERVICE]
network:
  default: hold
  allow:
    - {host: api.example.com, ports: [443]}
    - "other.example.com:443"
    - {cidr: 10.1.0.0/16, ports: [443]}
    - host: git.example.com
      ports: [443]
      binaries: [/usr/bin/git]
      protocol: http
      path: /org/**
      access: read-only
      calls: [{method: POST, path: "/**/git-upload-pack", query: {service: "git-*"}}]
      denyCalls: [{path: /org/secret/**}]
      allowedIPs: [10.1.2.3]
      credentials: [git]
      budget: {up: 1MiB, down: 1GiB, perMinute: 60, connections: 4}
  deny: [{domain: evil.example}, {host: bad.example.com}]
credentials: [{name: git, env: GIT_TOKEN, header: Authorization}]
inference:
  routes: [{models: ["*"], upstream: local}]
  sensitive: deny
  budget: {requests: 500, tokens: 200000}
budgets:
  processes: 64
  memory: 2GiB
  cpu: 1.5
  scratch: 64MiB
  disk: 3GiB
  inodes: 5000
  diskRead: 40MiB
  diskWrite: 20MiB
  openFiles: 1024
  wallTime: 2h
audit: {files: denied, network: all}
require: {landlock: 4, tier: T2, kernel: 6.10, features: [disk-quota, cgroup2]}
`

const pin = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseFull(t *testing.T) {
	p := mustParse(t, full)
	want := Policy{
		Name:       "openclaw",
		Filesystem: Filesystem{Read: []string{"/usr", "/bin"}, Write: []string{"/workspace"}, Workdir: "/workspace"},
		Process: Process{
			Exec: []string{"/usr/local/bin/node", "/usr/bin/"}, ExecHashes: map[string]string{"/usr/local/bin/node": "sha256:" + pin},
			Spawn: true, Seccomp: "default", Violation: "deny", User: "1500", Group: "own", Capabilities: []string{"NET_BIND_SERVICE"},
		},
		Network: Network{
			Default: Hold,
			Allow: []HostRule{
				{Host: "api.example.com", Ports: []int{443}},
				{Host: "other.example.com", Ports: []int{443}},
				{CIDR: "10.1.0.0/16", Ports: []int{443}},
				{
					Host: "git.example.com", Ports: []int{443}, Binaries: []string{"/usr/bin/git"}, Protocol: "http", Inspect: true, Path: "/org/**", Access: "read-only",
					Calls:      []CallRule{{Method: "POST", Path: "/**/git-upload-pack", Query: map[string][]string{"service": {"git-*"}}}},
					DenyCalls:  []CallRule{{Path: "/org/secret/**"}},
					AllowedIPs: []string{"10.1.2.3/32"}, Credentials: []string{"git"}, Budget: LinkBudget{Up: 1 << 20, Down: 1 << 30, PerMinute: 60, Connections: 4},
				},
			},
			Deny: []HostRule{{Domain: "evil.example"}, {Host: "bad.example.com"}},
		},
		Inference:   Inference{Routes: []Route{{Models: []string{"*"}, Upstream: "local"}}, Sensitive: "deny", Budget: ModelBudget{Requests: 500, Tokens: 200000}},
		Credentials: []Credential{{Name: "git", Env: "GIT_TOKEN", Header: "Authorization"}},
		Budgets: Budgets{
			Processes: 64, Memory: 2 << 30, CPU: 1.5, Scratch: 64 << 20, Disk: 3 << 30, Inodes: 5000, DiskRead: 40 << 20, DiskWrite: 20 << 20,
			OpenFiles: 1024, WallTime: 2 * time.Hour,
		},
		Audit:   Audit{Files: "denied", Network: "all"},
		Require: Require{Landlock: 4, Tier: "T2", Kernel: "6.10", Features: []string{"cgroup2", "disk-quota"}},
	}
	if got := bare(p); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if p.Source != "t.yaml" || p.Dialect != "canonical" || p.Network.Allow[1].Line != 18 || p.Inference.Routes[0].Line != 34 {
		t.Errorf("source %q, dialect %q, lines %d, %d", p.Source, p.Dialect, p.Network.Allow[1].Line, p.Inference.Routes[0].Line)
	}
	checkCanonical(t, p)
}

// The two published dialects, byte for byte.
const (
	dialectA = `network:
  allow:
    - "api.anthropic.com:443"
    - "build.nvidia.com:443"
  deny: "*"
`
	dialectB = `agent_policy:
  network:
    allow_egress: ["api.internal.company.com"]
    deny_egress: ["*"]
  filesystem:
    read: ["/data/inputs"]
    write: ["/data/outputs"]
  execution:
    max_processes: 10
    max_memory_mb: 4096
    timeout_minutes: 120
`
)

func TestDialects(t *testing.T) {
	box, err := Preset("sandbox")
	if err != nil {
		t.Fatal(err)
	}
	a, err := Parse("policies/web.yaml", []byte(dialectA))
	if err != nil {
		t.Fatal(err)
	}
	want := bare(box)
	want.Name = "web"
	want.Network.Allow = []HostRule{{Host: "api.anthropic.com", Ports: []int{443}}, {Host: "build.nvidia.com", Ports: []int{443}}}
	if got := bare(a); !reflect.DeepEqual(got, want) || a.Dialect != "network" {
		t.Errorf("network dialect\ngot  %+v\nwant %+v", got, want)
	}
	checkCanonical(t, a)

	b, err := Parse("Batch Job.yml", []byte(dialectB))
	if err != nil {
		t.Fatal(err)
	}
	want = bare(box)
	want.Name = "batch-job"
	want.Network.Allow = []HostRule{{Host: "api.internal.company.com"}}
	want.Filesystem.Read = append(slices.Clone(box.Filesystem.Read), "/data/inputs")
	want.Filesystem.Write, want.Filesystem.Workdir = []string{"/data/outputs"}, "/data/outputs"
	want.Process.Spawn, want.Process.Seccomp = true, "default"
	want.Budgets.Processes, want.Budgets.Memory, want.Budgets.WallTime = 10, 4<<30, 2*time.Hour
	if got := bare(b); !reflect.DeepEqual(got, want) || b.Dialect != "agent_policy" {
		t.Errorf("agent_policy dialect\ngot  %+v\nwant %+v", got, want)
	}
	checkCanonical(t, b)
}

// What each source means, as a line that its canonical form must contain.
func TestParseGood(t *testing.T) {
	net := func(s string) string { return head + "network: " + s + "\n" }
	for _, c := range []struct{ name, src, want string }{
		{"closed network", head, "  default: deny\n"},
		{"closed exec", head, "  exec: []\n"},
		{"closed spawn", head, "  spawn: false\n"},
		{"closed budget", head, "  wallTime: 1h\n"},
		{"empty section", head + "network: {}\n", "  default: deny\n"},
		{"document marker and comments", "# mine\n---\n" + head, "metadata: {name: t}\n"},
		{"windows line ends", strings.ReplaceAll(head, "\n", "\r\n"), "metadata: {name: t}\n"},
		{"short host", head + "network: {allow: [API.Example.COM.]}\n", "- {host: api.example.com}\n"},
		{"short port", head + "network: {allow: ['example.com:8443']}\n", "- {host: example.com, ports: [8443]}\n"},
		{"short v6", head + "network: {allow: ['[2001:DB8::1]:443']}\n", "- {host: \"2001:db8::1\", ports: [443]}\n"},
		{"bare v6", head + "network: {allow: ['2001:db8::1']}\n", "- {host: \"2001:db8::1\"}\n"},
		{"mapped v4", head + "network: {allow: ['[::ffff:10.0.0.1]:80']}\n", "- {host: \"10.0.0.1\", ports: [80]}\n"},
		{"international", head + "network: {allow: [bücher.example]}\n", "- {host: xn--bcher-kva.example}\n"},
		{"one label below", head + "network: {allow: ['*.Example.com']}\n", "- {host: \"*.example.com\"}\n"},
		{"any name", head + "network: {allow: ['*:443']}\n", "- {host: \"*\", ports: [443]}\n"},
		{"ports sorted", head + "network: {allow: [{host: a.example, ports: [443, 80]}]}\n", "ports: [80, 443]"},
		{"allow domain", head + "network: {allow: [{domain: internal}]}\n", "- {domain: internal}\n"},
		{"v6 network", head + "network: {allow: [{cidr: 'fd00::/8'}]}\n", "- {cidr: \"fd00::/8\"}\n"},
		{"deny star is the default", head + "network: {allow: [a.example], deny: ['*']}\n", "  default: deny\n  allow:\n    - {host: a.example}\n  deny: []\n"},
		{"deny star overrides an inherited hold", head + "extends: production\nnetwork: {deny: ['*']}\n", "  default: deny\n"},
		{"deny star on ports is a rule", head + "network: {deny: [{host: '*', ports: [25]}]}\n", "- {host: \"*\", ports: [25]}\n"},
		{"extends inherits", head + "extends: production\n", "  default: hold\n"},
		{"extends keeps other fields", head + "extends: production\nnetwork: {allow: [a.example]}\n", "  default: hold\n"},
		{"extends replaces lists", head + "extends: development\nnetwork: {allow: [a.example]}\n", "  allow:\n    - {host: a.example}\n  deny:\n"},
		{"extends is read first", "extends: production\n" + head, "  default: hold\n"},
		{"seccomp follows spawn", head + "process: {spawn: true}\n", "  seccomp: default\n"},
		{"seccomp follows no spawn", head + "extends: development\nprocess: {spawn: false}\n", "  seccomp: strict\n"},
		{"workdir moves to write", head + "filesystem: {write: [/work]}\n", "  workdir: /work\n"},
		{"workdir moves to read", head + "filesystem: {read: [/opt], write: []}\n", "  workdir: /opt\n"},
		{"inherited read gives way to write", head + "filesystem: {write: [/opt]}\n", "  read: [/usr, /bin, /sbin, /lib, /lib64, /etc, /app, /proc, /dev]\n"},
		{"paths with spaces", head + "filesystem: {write: [/my data]}\n", "  write: [\"/my data\"]\n"},
		{"numeric strings stay strings", head + "inference: {routes: [{models: ['3.5'], upstream: local}]}\n", "- {models: [\"3.5\"], upstream: local}\n"},
		{"words stay strings", head + "inference: {routes: [{models: ['no', 'null'], upstream: local}]}\n", "- {models: [\"no\", \"null\"], upstream: local}\n"},
		{"no models", head + "inference: {routes: []}\n", "  routes: []\n"},
		{"unlimited tokens", head + "inference: {budget: {tokens: unlimited}}\n", "{requests: 200, tokens: unlimited}"},
		{"unlimited cpu", head + "budgets: {cpu: unlimited}\n", "  cpu: unlimited\n"},
		{"fractions of a core", head + "budgets: {cpu: 0.25}\n", "  cpu: 0.25\n"},
		{"largest unit", head + "budgets: {memory: 2048MiB}\n", "  memory: 2GiB\n"},
		{"bytes", head + "budgets: {scratch: 5001B}\n", "  scratch: 5001B\n"},
		{"minutes", head + "budgets: {wallTime: 90m}\n", "  wallTime: 1h30m\n"},
		{"seconds", head + "budgets: {wallTime: 3605s}\n", "  wallTime: 1h0m5s\n"},
		{"deny glob", net("{deny: ['*.Evil.example']}"), "- {host: \"*.evil.example\"}\n"},
		{"deny glob inside", net("{deny: ['a*.b.*']}"), "- {host: \"a*.b.*\"}\n"},
		{"deny glob, dialect A", "network: {deny: '*.evil.example'}\n", "- {host: \"*.evil.example\"}\n"},
		{"deny glob, dialect B", "agent_policy: {network: {deny_egress: ['*.evil.example']}}\n", "- {host: \"*.evil.example\"}\n"},
		{"some labels below", net("{allow: ['**.Example.com']}"), "- {host: \"**.example.com\"}\n"},
		{"part of a label", net("{allow: ['*-x.example.com']}"), "- {host: \"*-x.example.com\"}\n"},
		{"opaque", net("{allow: [{host: a.example, ports: [6379], protocol: tcp}]}"), "- {host: a.example, ports: [6379], protocol: tcp}\n"},
		{"in clear", net("{allow: [{host: a.example, ports: [80], protocol: http, inspect: false, access: full}]}"), "protocol: http, inspect: false, access: full}\n"},
		{"inspect said aloud", net("{allow: [{host: a.example, protocol: http, inspect: true, access: full}]}"), "{host: a.example, protocol: http, access: full}\n"},
		{
			"tools", net("{allow: [{host: a.example, protocol: mcp, calls: [{tool: search}, {tool: [a, 'b*'], args: {path: '/data/**', 'n': '1'}}]}]}"),
			"calls: [{tool: [search]}, {tool: [a, \"b*\"], args: {\"n\": [\"1\"], path: [\"/data/**\"]}}]}\n",
		},
		{
			"graph over websocket", net("{allow: [{host: a.example, protocol: websocket, calls: [{method: GET, path: /g}, {operation: query, fields: [me]}]}]}"),
			"calls: [{method: GET, path: /g}, {operation: query, fields: [me]}]}\n",
		},
		{
			"two protocols, two paths", net("{allow: [{host: a.example, protocol: http, access: full}, {host: a.example, protocol: graphql, path: /graphql, access: read-only}]}"),
			"protocol: graphql, path: /graphql, access: read-only}\n",
		},
		{
			"two protocols, two programs", net("{allow: [{host: a.example, binaries: [/bin/a], protocol: http, access: full}, {host: a.example, binaries: [/bin/b], protocol: mcp, access: full}]}"),
			"protocol: mcp, access: full}\n",
		},
		{"one address", net("{allow: [{host: a.example, allowedIPs: ['fd00::7', 10.0.0.0/8]}]}"), "allowedIPs: [\"fd00::7/128\", \"10.0.0.0/8\"]}\n"},
		{"a user", head + "process: {user: 1500, group: '1501'}\n", "  user: \"1500\"\n  group: \"1501\"\n"},
		{"capabilities sorted", head + "process: {capabilities: [NET_BIND_SERVICE, IPC_LOCK]}\n", "  capabilities: [IPC_LOCK, NET_BIND_SERVICE]\n"},
		{"no disk bound", head + "budgets: {disk: unlimited, inodes: unlimited}\n", "  disk: unlimited\n  inodes: unlimited\n"},
		{"kernel like a number", head + "require: {kernel: 6.10}\n", "kernel: \"6.10\""},
		{"any kernel", head + "extends: production\nrequire: {kernel: any}\n", "kernel: any"},
		{"dialect A, list", "network: {deny: [evil.example], allow: a.example}\n", "- {host: evil.example}\n"},
		{"dialect A, nothing", "network: {}\n", "  default: deny\n"},
		{"dialect A, inference", "network: {}\n", "- {models: [\"*\"], upstream: local}\n"},
		{"dialect B, nothing", "agent_policy: {}\n", "  write: [/tmp]\n"},
		{"dialect B, one process", "agent_policy: {execution: {max_processes: 1}}\n", "  spawn: false\n  seccomp: strict\n"},
		{"dialect B, reads stay runnable", "agent_policy: {filesystem: {read: [/data]}}\n", "  read: [/usr, /bin, /sbin, /lib, /lib64, /etc, /opt, /app, /proc, /dev, /data]\n"},
		{"dialect B, read inside write", "agent_policy: {filesystem: {read: [/data/in], write: [/data]}}\n", "  write: [/data]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustParse(t, c.src)
			if got := string(p.YAML()); !strings.Contains(got, c.want) {
				t.Errorf("no %q in\n%s", c.want, got)
			}
			checkCanonical(t, p)
		})
	}
}

// Each mistake: where it is reported, what is said to have been got, and what to do.
func TestParseBad(t *testing.T) {
	net := func(s string) string { return head + "network: " + s + "\n" }
	shell := func(s string) string {
		return "version: 1\nnetwork_policies: {a: {endpoints: [" + s + "], binaries: [{path: /bin/x}]}}\n"
	}
	for _, c := range []struct{ name, src, at, got, next string }{
		// The text.
		{"empty", "", "1:1", "an empty document", "begin with apiVersion"},
		{"comment only", "# x\n", "1:1", "an empty document", "begin with"},
		{"null", "~\n", "1:1", "nothing (null)", "write one"},
		{"scalar", "hello\n", "1:1", `the string "hello"`, "begin with"},
		{"list", "- a\n", "1:1", "a list", "begin with"},
		{"too large", head + strings.Repeat("#", MaxSource), "1:1", "a file of", "check the path"},
		{"not UTF-8", head + "# \xff\n", "4:3", "the byte 0xff", "save the file as UTF-8"},
		{"NUL", head + "a\x00b\n", "4:2", "U+0000", "remove it"},
		{"escape", "\x1b[2J" + head, "1:1", "U+001B", "remove it"},
		{"byte order mark", "\ufeff" + head, "1:1", "U+FEFF", "remove it"},
		{"right-to-left override", head + "# \u202e\n", "4:3", "U+202E", "remove it"},
		{"lone carriage return", head + "# a\rb: c\n", "4:4", "U+000D", "remove it"},
		{"line separator", head + "# a\u2028b: c\n", "4:4", "U+2028", "remove it"},
		{"next line", head + "# a\u0085b: c\n", "4:4", "U+0085", "remove it"},
		{"directive", "# x\n%YAML 1.1\n---\n" + head, "2:1", "directive", "remove the line"},
		{"second document", head + "---\n" + head, "4:1", "a second document", "a file of its own"},
		{"second, empty document", head + "---\n", "4:1", "a second document", "a file of its own"},
		{"syntax", head + "network: [\n", "5:1", "unreadable YAML", "correct the syntax"},
		{"tab indent", head + "network:\n\tdefault: deny\n", "5:1", "unreadable YAML", "correct the syntax"},
		{"bare star", head + "network: {deny: *}\n", "4:18", "unreadable YAML", `"*"`},
		{"anchor", head + "audit: &a {files: all}\n", "4:8", "the anchor &a", "write the value out"},
		{"merge key", head + "audit: {<<: {files: all}}\n", "4:9", "the merge key", "write the value out"},
		{"tag", head + "audit: {files: !!str all}\n", "4:16", "the tag !!str", "remove the tag"},
		{"own tag", head + "audit: {files: !all all}\n", "4:16", "the tag !all", "remove the tag"},
		{"empty value", head + "network:\n", "4:9", "nothing (null)", "leave the field out"},

		// The head.
		{"dialect", "rules: []\n", "1:1", "an unknown dialect", "add apiVersion"},
		{"network and more", "network: {}\nbudgets: {cpu: 1}\n", "1:1", "an unknown dialect", "add apiVersion"},
		// OpenShell.
		{"openshell 2", "version: 2\n", "1:10", "version 2", "rewrite it in canonical form"},
		{"openshell, nothing readable", "version: 1\nfilesystem_policy: {}\n", "2:20", "no path to read or write", "list the folders"},
		{"openshell, unknown field", "version: 1\nfilesystem_policies: {}\n", "2:1", `unknown field "filesystem_policies"`, `did you mean "filesystem_policy"`},
		{"openshell, write root", "version: 1\nfilesystem_policy: {read_write: [/]}\n", "2:34", `"/"`, "never writable"},
		{"openshell, root", "version: 1\nprocess: {run_as_user: \"0\"}\n", "2:24", "0, root", "never runs as root"},
		{"openshell, no port", shell("{host: a.example}"), "2:36", "without port", "port: 443"},
		{"openshell, no host", shell("{port: 443}"), "2:36", "without host or allowed_ips", "host: NAME"},
		{"openshell, protocol", shell("{host: a.example, port: 443, protocol: ftp}"), "2:75", `the string "ftp"`, "correct the word"},
		{"openshell, access and rules", shell("{host: a.example, port: 443, protocol: rest, access: full, rules: [{allow: {method: GET, path: /}}]}"), "2:36", "access and rules", "remove access"},
		{"openshell, rules of tcp", shell("{host: a.example, port: 443, protocol: tcp, access: full}"), "2:36", "without an inspected protocol", "add protocol"},
		{"openshell, tcp to an address", shell("{host: 192.0.2.1, port: 443, protocol: tcp}"), "2:36", "tcp for an address", "leave protocol out"},
		{"openshell, loopback", shell("{host: a.example, port: 443, allowed_ips: [127.0.0.1]}"), "2:79", "127.0.0.1", "smaller networks"},
		{"openshell, two of a name", "version: 1\nnetwork_policies: {a: {}, a: {}}\n", "2:27", `field "a" a second time`, "rename"},
		{"apiVersion", "apiVersion: clawbox.io/v2\nkind: AgentPolicy\nmetadata: {name: t}\n", "1:13", `"clawbox.io/v2"`, `"clawbox.io/v1"`},
		{"kind", "apiVersion: clawbox.io/v1\nkind: Recipe\nmetadata: {name: t}\n", "2:7", `"Recipe"`, "use one of those"},
		{"no kind", "apiVersion: clawbox.io/v1\nmetadata: {name: t}\n", "1:1", "without kind", "add kind: AgentPolicy"},
		{"no name", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\n", "1:1", "without metadata.name", "add metadata"},
		{"name", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: Open Claw}\n", "3:18", `"Open Claw"`, "begin and end"},
		{"name, traversal", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: ../x}\n", "3:18", `"../x"`, "begin and end"},
		{"name, word", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: no}\n", "3:18", "the bare word no", "between quotes"},
		{"name, number", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: 12}\n", "3:18", `the number "12"`, "between quotes"},
		{"name, date", "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: 2026-01-01}\n", "3:18", `the date "2026-01-01"`, "between quotes"},
		{"preset", head + "extends: prodution\n", "4:10", `"prodution"`, `"production"`},
		{"both dialects", "apiVersion: clawbox.io/v1\nagent_policy: {}\nkind: AgentPolicy\nmetadata: {name: t}\n", "2:1", `unknown field "agent_policy"`, "remove it"},
		{"dialect B and more", "agent_policy: {}\nnetwork: {}\n", "2:1", `unknown field "network"`, "remove it"},

		// Fields.
		{"unknown field", head + "netwrok: {}\n", "4:1", `unknown field "netwrok" in the policy`, `"network"`},
		{"unknown inner field", head + "budgets: {walltime: 2h}\n", "4:11", `unknown field "walltime" in budgets`, `"wallTime"`},
		{"unknown far field", head + "budgets: {zzz: 2}\n", "4:11", `unknown field "zzz"`, "remove it"},
		{"duplicate", head + "audit: {files: all}\naudit: {files: denied}\n", "5:1", `field "audit" a second time`, "line 4"},
		{"duplicate inside", head + "budgets: {cpu: 1, cpu: 2}\n", "4:19", `field "cpu" a second time`, "line 4"},
		{"key not a word", head + "1: x\n", "4:1", "as a field name", "the fields of"},
		{"key a list", head + "? [a]\n: x\n", "4:3", "a list as a field name", "the fields of"},
		{"network: no", head + "network: no\n", "4:10", `the string "no"`, "its fields are allow, default, deny"},
		{"list for mapping", head + "network: []\n", "4:10", "a list", "its fields are"},
		{"scalar for list", head + "filesystem: {read: /usr}\n", "4:20", `the string "/usr"`, "[/usr]"},
		{"mapping for string", head + "audit: {files: {}}\n", "4:16", "a mapping", "write one value"},
		{"spawn: yes", head + "process: {spawn: yes}\n", "4:18", `the string "yes"`, "write one of the two"},
		{"spawn: TRUE", head + "process: {spawn: TRUE}\n", "4:18", `the boolean "TRUE"`, "lower case"},
		{"spawn quoted", head + "process: {spawn: 'true'}\n", "4:18", `the string "true"`, "without quotes"},
		{"word", head + "audit: {files: al}\n", "4:16", `"al"`, `"all"`},
		{"control in string", head + "filesystem: {read: [\"/a\\u0007\"]}\n", "4:21", `"/a\a"`, "remove control"},
		{"empty string", head + "filesystem: {read: ['']}\n", "4:21", "a string of 0 bytes", "write a value"},

		// Paths.
		{"relative", head + "filesystem: {read: [usr]}\n", "4:21", `"usr"`, "begin with /"},
		{"home", head + "filesystem: {write: [~/x]}\n", "4:22", `"~/x"`, "not expanded"},
		{"dot-dot", head + "filesystem: {read: [/usr/../etc]}\n", "4:21", `"/usr/../etc"`, `write "/etc"`},
		{"final slash", head + "filesystem: {read: [/usr/]}\n", "4:21", `"/usr/"`, `write "/usr"`},
		{"doubled slash", head + "process: {exec: [/usr//bin/]}\n", "4:18", `"/usr//bin/"`, `write "/usr/bin/"`},
		{"glob", head + "filesystem: {read: ['/usr/*']}\n", "4:21", `"/usr/*"`, "name the folder"},
		{"twice", head + "filesystem: {read: [/usr, /usr]}\n", "4:27", `"/usr" twice`, "remove one"},
		{"write root", head + "filesystem: {write: [/]}\n", "4:22", `"/"`, "never writable"},
		{"write proc", head + "filesystem: {write: [/proc/sys]}\n", "4:22", `"/proc/sys"`, "never writable"},
		{"workdir outside", head + "filesystem: {workdir: /srv}\n", "4:23", `"/srv"`, "filesystem.write"},
		{"no paths", head + "filesystem: {read: [], write: []}\n", "4:20", "no path", "list the folders"},
		{"read inside write", head + "filesystem: {read: [/w/ro], write: [/w]}\n", "4:20", "read /w/ro inside write /w", "remove /w/ro"},
		{"exec inside write", head + "process: {exec: [/w/bin/x]}\nfilesystem: {write: [/w]}\n", "4:17", "exec /w/bin/x and write /w", "separate"},
		{"write inside exec", head + "process: {exec: [/usr/]}\nfilesystem: {write: [/usr/w]}\n", "4:17", "exec /usr/ and write /usr/w", "separate"},
		{"write over inherited exec", head + "extends: development\nfilesystem: {write: [/usr/bin]}\n", "5:21", "exec /usr/bin/ and write /usr/bin", "separate"},
		{"strict with spawn", head + "process: {spawn: true, seccomp: strict}\n", "4:33", `seccomp "strict" with spawn: true`, "leave seccomp out"},
		{"default without spawn", head + "process: {seccomp: default}\n", "4:20", `seccomp "default" with spawn: false`, "leave seccomp out"},

		// Hosts.
		{"deny glob of addresses", net("{deny: ['10.0.*']}"), "4:18", `the pattern "10.0.*"`, "{cidr: ...}"},
		{"deny glob of v6", net("{deny: [{host: 'fd00:*'}]}"), "4:25", `the pattern "fd00:*"`, "{cidr: ...}"},
		{"deny glob, empty label", net("{deny: ['*..example']}"), "4:18", `the pattern "*..example"`, "xn--"},
		{"deny glob, international", net("{deny: ['*.bücher.example']}"), "4:18", "the pattern", "xn--"},
		{"two stars at once", net("{allow: ['a**b.example']}"), "4:19", `the pattern "a**b.example"`, "{domain: name}"},
		{"star alone in a name", net("{allow: ['a*']}"), "4:19", `the pattern "a*"`, "{domain: name}"},
		{"deny rule with terms", net("{deny: [{host: a.example, binaries: [/bin/x]}]}"), "4:36", `unknown field "binaries" in network.deny`, "remove it"},
		{"rest is OpenShell's word", net("{allow: [{host: a.example, protocol: rest, access: full}]}"), "4:47", `"rest"`, ""},
		{"protocol without calls", net("{allow: [{host: a.example, protocol: http}]}"), "4:19", "neither access nor calls", "access: full"},
		{"calls without protocol", net("{allow: [{host: a.example, calls: [{method: GET}]}]}"), "4:19", "calls but without an inspected protocol", "add protocol: http"},
		{"calls of opaque", net("{allow: [{host: a.example, protocol: tcp, access: full}]}"), "4:19", "access but without an inspected protocol", "remove access"},
		{"inspect without protocol", net("{allow: [{host: a.example, inspect: true}]}"), "4:19", "inspect but without", "add protocol: http"},
		{"access of mcp", net("{allow: [{host: a.example, protocol: mcp, access: read-only}]}"), "4:19", "access read-only for mcp", "list them"},
		{"rpc over http", net("{allow: [{host: a.example, protocol: http, calls: [{rpc: x}]}]}"), "4:62", `unknown field "rpc" in calls of http`, ""},
		{"empty entry", net("{allow: [{host: a.example, protocol: http, calls: [{}]}]}"), "4:61", "an empty entry", "access: full"},
		{"empty calls", net("{allow: [{host: a.example, protocol: http, calls: []}]}"), "4:60", "an empty list", "leave the field out"},
		{"lower-case method", net("{allow: [{host: a.example, protocol: http, calls: [{method: get}]}]}"), "4:70", `"get"`, "write GET"},
		{"path with query", net("{allow: [{host: a.example, protocol: http, calls: [{path: '/x?y=1'}]}]}"), "4:68", `"/x?y=1"`, "query: {name: [pattern]}"},
		{"encoded path", net("{allow: [{host: a.example, protocol: http, calls: [{path: '/x%2fy'}]}]}"), "4:68", `"/x%2fy"`, "decoded"},
		{"path with class", net("{allow: [{host: a.example, protocol: http, calls: [{path: '/[0-9]'}]}]}"), "4:68", `"/[0-9]"`, "a star"},
		{"dotted path", net("{allow: [{host: a.example, protocol: http, calls: [{path: /a/../b}]}]}"), "4:68", `"/a/../b"`, "canonical form"},
		{"relative path", net("{allow: [{host: a.example, protocol: http, calls: [{path: a}]}]}"), "4:68", `"a"`, "begin with /"},
		{"pattern class", net("{allow: [{host: a.example, protocol: mcp, calls: [{tool: 'a[b]'}]}]}"), "4:67", `"a[b]"`, "one pattern for each choice"},
		{"operation and method", net("{allow: [{host: a.example, protocol: websocket, calls: [{method: GET, operation: query}]}]}"), "4:66", "operation and with a field of the request", "two entries"},
		{"frame and method", net("{allow: [{host: a.example, protocol: websocket, calls: [{method: GET, frame: text}]}]}"), "4:66", "method and frame", "two entries"},
		{"websocket POST", net("{allow: [{host: a.example, protocol: websocket, calls: [{method: POST}]}]}"), "4:75", `"POST"`, "frame: text"},
		{"tool of another method", net("{allow: [{host: a.example, protocol: mcp, calls: [{rpc: tools/list, tool: x}]}]}"), "4:60", `rpc "tools/list" and with tool`, "remove rpc"},
		{"relative binary", net("{allow: [{host: a.example, binaries: [git]}]}"), "4:48", `"git"`, "begin with /"},
		{"no binaries", net("{allow: [{host: a.example, binaries: []}]}"), "4:47", "an empty list", "leave the field out"},
		{"binary class", net("{allow: [{host: a.example, binaries: ['/bin/pyt?on']}]}"), "4:48", `"/bin/pyt?on"`, "list the programs"},
		{"dotted binary", net("{allow: [{host: a.example, binaries: [/bin/../x]}]}"), "4:48", `"/bin/../x"`, "kernel"},
		{"glob folder", net("{allow: [{host: a.example, binaries: ['/home/*/']}]}"), "4:48", `"/home/*/"`, `"/home/*/**"`},
		{"loopback by name", net("{allow: [{host: a.example, allowedIPs: [127.0.0.0/8]}]}"), "4:50", "127.0.0.0/8", "smaller networks"},
		{"metadata by name", net("{allow: [{host: a.example, allowedIPs: ['169.254.169.254']}]}"), "4:50", `"169.254.169.254"`, "smaller networks"},
		{"everywhere by name", net("{allow: [{host: a.example, allowedIPs: [0.0.0.0/0]}]}"), "4:50", "0.0.0.0/0", "smaller networks"},
		{"bits beyond", net("{allow: [{host: a.example, allowedIPs: [10.0.0.1/8]}]}"), "4:50", "bits beyond its prefix", "10.0.0.0/8"},
		{"allowedIPs of an address", net("{allow: [{cidr: 10.0.0.0/8, allowedIPs: [10.0.0.0/8]}]}"), "4:19", "allowedIPs for 10.0.0.0/8", "remove allowedIPs"},
		{"unknown credential", net("{allow: [{host: a.example, protocol: http, access: full, credentials: [x]}]}"), "4:1", `credential "x"`, "add {name: x"},
		{"credential in clear", net("{allow: [{host: a.example, protocol: http, inspect: false, access: full, credentials: [x]}]}"), "4:19", "credentials and inspect: false", "in clear"},
		{"credential for anyone", net("{allow: [{host: '*', protocol: http, access: full, credentials: [x]}]}"), "4:19", "credentials for *", "host or domain"},
		{"two protocols", net("{allow: [{host: a.example, protocol: http, access: full}, {host: a.example, ports: [443], protocol: mcp, access: full}]}"), "4:1", "a.example:443 as mcp beside a.example as http (line 4)", "a path of its own"},
		{"empty budget", net("{allow: [{host: a.example, budget: {}}]}"), "4:45", "an empty budget", "leave the field out"},
		{"zero budget", net("{allow: [{host: a.example, budget: {perMinute: 0}}]}"), "4:57", "0", "in that range"},
		// Identity.
		{"pin without path", head + "process: {exec: [{sha256: '" + pin + "'}]}\n", "4:18", "without path or sha256", "path alone"},
		{"pinned folder", head + "process: {exec: [{path: /usr/bin/, sha256: '" + pin + "'}]}\n", "4:25", "with a sha256", "name the program"},
		{"short pin", head + "process: {exec: [{path: /usr/bin/x, sha256: abc}]}\n", "4:45", `"abc"`, "sha256sum"},
		{"root", head + "process: {user: 0}\n", "4:17", "0, root", "never runs as root"},
		{"user by name", head + "process: {user: sandbox}\n", "4:17", `the string "sandbox"`, "digits"},
		{"user -1", head + "process: {group: 4294967295}\n", "4:18", "4294967295", "range"},
		{"harmful capability", head + "process: {capabilities: [SYS_ADMIN]}\n", "4:26", `"SYS_ADMIN" (it mounts`, "no agent gets this one"},
		{"harmful, long", head + "process: {capabilities: [CAP_NET_RAW]}\n", "4:26", "packet sockets", "no agent gets this one"},
		{"capability's long name", head + "process: {capabilities: [CAP_IPC_LOCK]}\n", "4:26", `"CAP_IPC_LOCK"`, "write IPC_LOCK"},
		{"unknown capability", head + "process: {capabilities: [IPC_LOKC]}\n", "4:26", `"IPC_LOKC"`, "IPC_LOCK"},
		{"credential without env", head + "credentials: [{name: a}]\n", "4:15", "without name or env", "write {name"},
		{"credential twice", head + "credentials: [{name: a, env: A}, {name: b, env: A}]\n", "4:34", "credential b in A beside a in A", "rename"},
		{"bad variable", head + "credentials: [{name: a, env: A-B}]\n", "4:30", `"A-B"`, "correct the name"},
		{"framing header", head + "credentials: [{name: a, env: A, header: Content-Length}]\n", "4:41", `"Content-Length"`, "Authorization"},
		// Needs.
		{"disk without unit", head + "budgets: {disk: 100}\n", "4:17", `the number "100"`, "whole number and its unit"},
		{"few inodes", head + "budgets: {inodes: 3}\n", "4:19", "3", "in that range"},
		{"feature", head + "require: {features: [cgroup3]}\n", "4:22", `"cgroup3"`, "cgroup2"},
		{"kernel word", head + "require: {kernel: new}\n", "4:19", `the string "new"`, `"any"`},
		{"kernel patch level", head + "require: {kernel: 6.1.3}\n", "4:19", `the string "6.1.3"`, "major and minor"},
		{"audit level", head + "audit: {network: some}\n", "4:18", `"some"`, ""},
		{"violation", head + "process: {violation: log}\n", "4:22", `"log"`, ""},
		{"domain glob", net("{deny: [{domain: '*.evil.example'}]}"), "4:27", `the pattern "*.evil.example"`, "{domain: evil.example}"},
		{"inner glob", net("{allow: ['a.*.example']}"), "4:19", `the pattern "a.*.example"`, "{domain: name}"},
		{"glob over address", net("{allow: ['*.10.0.0.1']}"), "4:19", "over an address", "cidr"},
		{"scheme", net("{allow: ['https://a.example/x']}"), "4:19", `"https://a.example/x"`, "remove the scheme"},
		{"short network", net("{allow: ['10.0.0.0/8']}"), "4:19", `"10.0.0.0/8"`, "{cidr: 10.0.0.0/8}"},
		{"port 0", net("{allow: ['a.example:0']}"), "4:19", `port "0"`, "correct it"},
		{"port 65536", net("{allow: ['a.example:65536']}"), "4:19", `port "65536"`, "correct it"},
		{"port 0443", net("{allow: ['a.example:0443']}"), "4:19", `port "0443"`, "correct it"},
		{"port name", net("{allow: ['a.example:https']}"), "4:19", `port "https"`, "correct it"},
		{"port empty", net("{allow: ['a.example:']}"), "4:19", `port ""`, "correct it"},
		{"port in list", net("{allow: [{host: a.example, ports: [70000]}]}"), "4:45", "70000", "in that range"},
		{"port quoted", net("{allow: [{host: a.example, ports: ['443']}]}"), "4:45", `the string "443"`, "without quotes"},
		{"port twice", net("{allow: [{host: a.example, ports: [80, 80]}]}"), "4:49", "port 80 twice", "remove one"},
		{"ports empty", net("{allow: [{host: a.example, ports: []}]}"), "4:44", "an empty list", "leave the field out"},
		{"port in host field", net("{allow: [{host: 'a.example:443'}]}"), "4:26", `"a.example:443"`, "ports: [443]"},
		{"two destinations", net("{allow: [{host: a.example, domain: b.example}]}"), "4:19", "2 of host, domain and cidr", "one rule for each"},
		{"no destination", net("{allow: [{ports: [443]}]}"), "4:19", "0 of host, domain and cidr", "one rule for each"},
		{"number as host", net("{allow: [1.5]}"), "4:19", `the number "1.5"`, "between quotes"},
		{"short-form address", net("{allow: ['127.1']}"), "4:19", "ends in a number", "correct the name"},
		{"empty label", net("{allow: ['a..example']}"), "4:19", "a label is empty", "correct the name"},
		{"bad network", net("{allow: [{cidr: 10.0.0.0/33}]}"), "4:26", `"10.0.0.0/33"`, "prefix-length"},
		{"network bits", net("{allow: [{cidr: 10.1.2.3/16}]}"), "4:26", "bits beyond its prefix", "10.1.0.0/16"},
		{"mapped network", net("{allow: [{cidr: '::ffff:10.0.0.0/104'}]}"), "4:26", "::ffff", "a.b.c.d/len"},
		{"domain address", net("{deny: [{domain: 10.0.0.1}]}"), "4:27", `the address "10.0.0.1"`, "{host: 10.0.0.1}"},
		{"default allow", net("{default: allow}"), "4:20", `"allow"`, "remove it or use"},
		{"default no", net("{default: no}"), "4:20", "the bare word no", "between quotes"},
		{"hold beside deny star", net("{default: hold, deny: ['*']}"), "4:20", `default: hold beside deny "*"`, "default: deny"},
		{"allow star beside deny star", net("{allow: ['*'], deny: ['*']}"), "4:31", `allow "*" beside deny "*"`, "list the hosts"},
		{"both stars, dialect A", "network: {allow: '*', deny: '*'}\n", "1:29", `allow "*" beside deny "*"`, "list the hosts"},
		{"both stars, dialect B", "agent_policy: {network: {allow_egress: ['*'], deny_egress: ['*']}}\n", "1:60", `allow "*" beside deny "*"`, "list the hosts"},

		// Models.
		{"model glob", head + "inference: {routes: [{models: ['gpt*'], upstream: local}]}\n", "4:32", `the pattern "gpt*"`, "list the models"},
		{"no upstream", head + "inference: {routes: [{models: ['*']}]}\n", "4:22", "without models or upstream", "upstream: local"},
		{"upstream URL", head + "inference: {routes: [{models: ['*'], upstream: 'http://x'}]}\n", "4:48", `"http://x"`, "begin and end"},
		{"zero requests", head + "inference: {budget: {requests: 0}}\n", "4:32", "got 0", "unlimited"},
		{"negative tokens", head + "inference: {budget: {tokens: -5}}\n", "4:30", "-5", "in that range"},

		// Budgets.
		{"size without unit", head + "budgets: {memory: 2048}\n", "4:19", `the number "2048"`, "512MiB"},
		{"decimal unit", head + "budgets: {memory: 2GB}\n", "4:19", `"2GB"`, "512MiB"},
		{"negative size", head + "budgets: {memory: -2GiB}\n", "4:19", `"-2GiB"`, "512MiB"},
		{"too little", head + "budgets: {memory: 1KiB}\n", "4:19", `"1KiB"`, "512MiB"},
		{"too much", head + "budgets: {memory: 99999999TiB}\n", "4:19", `"99999999TiB"`, "512MiB"},
		{"just too much", head + "budgets: {memory: 1025TiB}\n", "4:19", `"1025TiB"`, "512MiB"},
		{"wraps round to 1TiB", head + "budgets: {memory: 16777217TiB}\n", "4:19", `"16777217TiB"`, "512MiB"},
		{"zero processes", head + "budgets: {processes: 0}\n", "4:22", "got 0", "in that range"},
		{"negative processes", head + "budgets: {processes: -1}\n", "4:22", "got -1", "in that range"},
		{"octal", head + "budgets: {processes: 0100}\n", "4:22", `"0100"`, "digits only"},
		{"new octal", head + "budgets: {processes: 0o100}\n", "4:22", `"0o100"`, "digits only"},
		{"hexadecimal", head + "budgets: {processes: 0x40}\n", "4:22", `"0x40"`, "digits only"},
		{"underscore", head + "budgets: {processes: 1_000}\n", "4:22", `"1_000"`, "digits only"},
		{"float count", head + "budgets: {processes: 1e3}\n", "4:22", `"1e3"`, "digits only"},
		{"overflow", head + "budgets: {processes: 99999999999999999999}\n", "4:22", `"99999999999999999999"`, "digits only"},
		{"cpu zero", head + "budgets: {cpu: 0}\n", "4:16", `"0"`, "unlimited"},
		{"cpu negative", head + "budgets: {cpu: -0.5}\n", "4:16", `"-0.5"`, "unlimited"},
		{"cpu infinite", head + "budgets: {cpu: .inf}\n", "4:16", `".inf"`, "unlimited"},
		{"cpu not a number", head + "budgets: {cpu: .nan}\n", "4:16", `".nan"`, "unlimited"},
		{"cpu quoted", head + "budgets: {cpu: '1'}\n", "4:16", `the string "1"`, "unlimited"},
		{"time without unit", head + "budgets: {wallTime: 120}\n", "4:21", `the number "120"`, "such as 2h"},
		{"time negative", head + "budgets: {wallTime: -2h}\n", "4:21", `"-2h"`, "such as 2h"},
		{"time zero", head + "budgets: {wallTime: 0s}\n", "4:21", `"0s"`, "such as 2h"},
		{"time fraction", head + "budgets: {wallTime: 1500ms}\n", "4:21", `"1500ms"`, "such as 2h"},
		{"time unlimited", head + "budgets: {wallTime: unlimited}\n", "4:21", `"unlimited"`, "such as 2h"},
		{"time over a year", head + "budgets: {wallTime: 9000h}\n", "4:21", `"9000h"`, "such as 2h"},
		{"size is a list", head + "budgets: {memory: [1GiB]}\n", "4:19", "a list", "512MiB"},
		{"dialect B minutes", "agent_policy: {execution: {timeout_minutes: 0}}\n", "1:45", "got 0", "in that range"},
		{"dialect B unit", "agent_policy: {execution: {max_memory_mb: 4GiB}}\n", "1:43", `"4GiB"`, "digits only"},
		{"dialect B field", "agent_policy: {execution: {max_procs: 4}}\n", "1:28", `unknown field "max_procs"`, `"max_processes"`},
		{"dialect A field", "network: {allow_egress: []}\n", "1:11", `unknown field "allow_egress"`, "remove it"},

		// Require.
		{"tier", head + "require: {tier: T0}\n", "4:17", `"T0"`, `"T1"`},
		{"landlock", head + "require: {landlock: 0}\n", "4:21", "got 0", "in that range"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse("dir/p.yaml", []byte(c.src))
			if err == nil || p != nil {
				t.Fatalf("got no error, and\n%s", p.YAML())
			}
			var one *Error
			if !errors.As(err, &one) {
				t.Fatalf("%T is no *Error", err)
			}
			line, _, more := strings.Cut(err.Error(), "\n")
			if more {
				t.Errorf("one mistake, several errors:\n%v", err)
			}
			if want := "dir/p.yaml:" + c.at + ": got "; !strings.HasPrefix(line, want) {
				t.Errorf("got  %s\nwant prefix %s", line, want)
			}
			if got := "got " + one.Got; !strings.Contains(got, c.got) || !strings.Contains(one.Next, c.next) || one.Want == "" {
				t.Errorf("%s\nwant got %q and next %q", line, c.got, c.next)
			}
		})
	}
}

func TestParseReportsEverything(t *testing.T) {
	_, err := Parse("p.yaml", []byte(head+"netwrok: {}\nbudgets: {cpu: -1, memory: 5}\naudit: {files: al}\n"))
	if err == nil {
		t.Fatal("no error")
	}
	var at []string
	for line := range strings.Lines(err.Error()) {
		at = append(at, strings.Join(strings.SplitN(line, ":", 4)[:3], ":"))
	}
	if want := []string{"p.yaml:4:1", "p.yaml:5:16", "p.yaml:5:28", "p.yaml:6:16"}; !slices.Equal(at, want) {
		t.Errorf("got %v, want %v", at, want)
	}
	_, err = Parse("p.yaml", []byte(head+"filesystem: {read: &r [/usr], write: *r}\n"))
	if s := fmt.Sprint(err); !strings.Contains(s, "p.yaml:4:20: got the anchor &r") || !strings.Contains(s, "p.yaml:4:38: got the alias *r") {
		t.Errorf("anchor and alias: %v", err)
	}
	_, err = Parse("p.yaml", []byte(head+"filesystem: {read: ["+strings.Repeat("x, ", 500)+"]}\n"))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != maxErrors {
		t.Errorf("got %d errors, want %d", n, maxErrors)
	}
}

func TestNameOf(t *testing.T) {
	for in, want := range map[string]string{
		"openclaw.yaml": "openclaw", "/a/b/My Agent.YML": "my-agent", "": "policy", "...": "policy",
		"ü.yaml": "policy", strings.Repeat("a", 80): strings.Repeat("a", 63),
	} {
		if got := nameOf(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
