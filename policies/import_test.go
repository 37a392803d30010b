package policies

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// OpenShell's examples, as their page writes them: what they become, and what
// the report says.
func TestImportOpenShell(t *testing.T) {
	for _, c := range []struct {
		file string
		has  []string // lines of the canonical form
		says []string // lines of the report
		not  []string // what must not be in the canonical form
	}{
		{"agent", []string{
			"  read: [/usr, /lib, /etc, /opt/tools, /proc, /dev/urandom, /var/log]",
			"  write: [/sandbox, /tmp]", "  workdir: /sandbox", "  exec: [/usr/, /lib/, /opt/tools/]", "  user: own", `  group: "1500"`, "  default: deny",
			`    - {host: "*.models.example.com", ports: [443, 8443], binaries: [/usr/local/bin/agent, "/opt/tools/**"]}`,
			`    - {host: forge.example.com, ports: [443], binaries: [/usr/bin/git], protocol: http, access: read-write, denyCalls: [{method: POST, path: "/repos/*/reviews"}, {method: "*", path: "/orgs/**/rulesets"}]}`,
			`    - {host: forge.example.com, ports: [443], binaries: [/usr/bin/git], protocol: graphql, path: /graphql, calls: [{operation: query}, {operation: mutation, operationName: "Issue*", fields: [createIssue]}], denyCalls: [{operation: mutation, fields: [deleteRepository]}]}`,
			`    - {host: git.example.com, ports: [443], binaries: [/usr/bin/git], protocol: http, calls: [{method: GET, path: "/**/info/refs*", query: {service: ["git-*"]}}, {method: POST, path: "/**/git-upload-pack", query: {tag: ["v1.*", "v2.*"]}}]}`,
		}, []string{
			"wider: model calls: ", "narrower: line 10: compatibility: best_effort: require.landlock: 3",
			`narrower: line 36: path "/orgs/[a-m]*/rulesets": denied as "/orgs/**/rulesets", which is more`,
			"narrower: line 54: enforcement: audit: enforced", "narrower: line 61: /issue-[0-9]: left out: ",
			"same: line 7: read_write /dev/null: ", "same: line 13: run_as_user: sandbox: ",
		}, []string{"/dev/null", "issue-"}},
		{"protocols", []string{
			`protocol: websocket, calls: [{method: GET, path: "/v1/realtime/**"}, {path: "/v1/realtime/**", frame: text}], denyCalls: [{path: "/v1/admin/**", frame: text}]}`,
			`calls: [{rpc: initialize}, {rpc: notifications/initialized}, {tool: [search_web]}, {tool: [create_issue, list_issues]}, {tool: ["get_*"]}], denyCalls: [{tool: [send_email]}]}`,
			"    - {host: open.example.com, ports: [443], binaries: [/usr/bin/node], protocol: mcp, calls: [{rpc: initialize}, {rpc: ping}, {rpc: \"notifications/*\"}, {rpc: tools/list}, {rpc: \"resources/*\"}, {rpc: \"prompts/*\"}, {rpc: completion/complete}, {rpc: logging/setLevel}, {rpc: \"tasks/*\"}, {rpc: tools/call}]}",
			"host: some.example.com, ports: [443], binaries: [/usr/bin/node], protocol: mcp, calls: [{tool: [search]}, {rpc: initialize}",
			"protocol: json-rpc, calls: [{rpc: reports.list}, {rpc: reports.search}], denyCalls: [{rpc: reports.delete}]}",
			`protocol: tcp, allowedIPs: ["10.0.0.0/8", "192.168.1.7/32"]}`,
			`    - {host: "*", ports: [5432], binaries: ["/**"], allowedIPs: ["10.1.0.0/16"]}`,
			`    - {cidr: "10.1.0.0/16", ports: [5432], binaries: ["/**"]}`,
		}, []string{
			"narrower: line 58: protocol: sql: the endpoint is left out", "lost: line 60: credential_signing: ", "lost: line 61: credential_binding: ",
			"narrower: line 62: allow_encoded_slash: true: ", "same: line 65: network_policies.nobody", "narrower: line 37: strict_tool_names: false: ",
		}, []string{"db.example.com", "nobody"}},
		{"middleware", []string{"    - {host: free.guarded.example,", "    - {host: watched.example,"}, []string{
			"lost: line 3: network_middlewares.redactor", "wider: line 10: network_middlewares.watcher", "narrower: line 18: api.guarded.example: the endpoint is left out",
		}, []string{"api.guarded", "other.example"}},
	} {
		src, err := os.ReadFile("testdata/openshell/" + c.file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		p, cs, err := Import(c.file+".yaml", src)
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		checkCanonical(t, p)
		var report strings.Builder
		for _, x := range cs {
			report.WriteString(x.String() + "\n")
		}
		text := string(p.YAML())
		for _, s := range c.has {
			if !strings.Contains(text, s) {
				t.Errorf("%s: no %q in\n%s", c.file, s, text)
			}
		}
		for _, s := range c.not {
			if strings.Contains(text, s) {
				t.Errorf("%s: %q in\n%s", c.file, s, text)
			}
		}
		for _, s := range c.says {
			if !strings.Contains(report.String(), s) {
				t.Errorf("%s: no %q in\n%s", c.file, s, report.String())
			}
		}
		if p.Dialect != "openshell" {
			t.Errorf("%s: dialect %s", c.file, p.Dialect)
		}
	}
}

// Rules of OpenShell's that cannot be said word by word: an allowance is left
// out, a denial denies no less.
func TestImportCalls(t *testing.T) {
	const ends = "version: 1\nnetwork_policies: {a: {binaries: [{path: /**}], endpoints: [{host: a.example, port: 443, "
	for _, c := range []struct{ end, want string }{
		{"protocol: rest, rules: [{allow: {method: GET, path: '/x?y'}}]", ""},
		{"protocol: rest, rules: [{allow: {method: GET, path: x}}, {allow: {method: PUT, path: /p}}]", "calls: [{method: PUT, path: /p}]}"},
		{"protocol: rest, rules: [{allow: {method: GET}}]", ""},
		{"protocol: rest, rules: [{allow: {path: /x}}]", ""},
		{"protocol: rest, rules: [{allow: {method: WEBSOCKET_TEXT, path: /x}}]", ""},
		{"protocol: rest, rules: [{allow: {method: GET, path: /x, command: SELECT}}]", ""},
		{"protocol: rest, rules: [{allow: {method: '*', path: '**'}}]", "calls: [{method: \"*\"}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: '/x?y'}]", "access: full, denyCalls: [{method: GET, path: \"/x*y\"}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: '/a{b,c/d}e'}]", "denyCalls: [{method: GET, path: \"/a*e\"}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: '/a[b'}]", "denyCalls: [{method: GET}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: 'a]'}]", "denyCalls: [{method: GET}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: '/a/../b'}]", "denyCalls: [{method: GET}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: 'x!', path: /a}]", "denyCalls: [{method: \"*\", path: /a}]}"},
		{"protocol: rest, access: full, deny_rules: [{method: GET, path: /a, query: {q: {any: [x, '[0-9]']}}}]", "denyCalls: [{method: GET, path: /a, query: {q: [x, \"*\"]}}]}"},
		{"protocol: graphql, rules: [{allow: {operation_type: Query}}, {allow: {method: GET, path: /x}}, {allow: {fields: [a]}}]", "calls: [{operation: query}]}"},
		{"protocol: graphql, access: full, deny_rules: [{method: POST, path: /g, operation_type: mutation}]", "denyCalls: [{method: POST, path: /g}, {operation: mutation}]}"},
		{"protocol: websocket, rules: [{allow: {method: '*', path: /x}}]", "calls: [{method: GET, path: /x}, {path: /x, frame: text}]}"},
		{"protocol: websocket, rules: [{allow: {method: GET, path: /g}}, {allow: {operation_type: query}}]", "calls: [{method: GET, path: /g}, {operation: query}]}"},
		{"protocol: mcp, rules: [{allow: {tool: x}}]", ""},
		{"protocol: mcp, rules: [{allow: {method: tools/*}}], deny_rules: [{method: tools/call, tool: x, path: /y}]", "calls: [{rpc: \"tools/*\"}], denyCalls: [{tool: [x]}]}"},
		{"protocol: mcp, mcp: {allow_all_known_mcp_methods: true}, deny_rules: [{tool: 'x[0-9]'}]", "{rpc: \"tasks/*\"}, {rpc: tools/call}], denyCalls: [{tool: [\"x*\"]}]}"},
		{"protocol: json-rpc, rules: [{allow: {method: '*'}}]", "calls: [{rpc: \"*\"}]}"},
		{"tls: skip, protocol: rest, access: full", ""},
		{"protocol: rest, path: '/a[b]', access: full", ""},
	} {
		p, cs, err := Import("o.yaml", []byte(ends+c.end+"}]}}\n"))
		if err != nil {
			t.Errorf("%s: %v", c.end, err)
			continue
		}
		checkCanonical(t, p)
		got := ""
		for _, r := range p.Network.Allow {
			got += r.YAML()
		}
		if c.want == "" && got != "" || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s\ngot  %s\nwant %s", c.end, got, c.want)
		}
		if c.want == "" && !slices.ContainsFunc(cs, func(x Change) bool { return strings.Contains(x.Now, "left out") }) {
			t.Errorf("%s: left out in silence: %v", c.end, cs)
		}
	}
}

// The published dialects: each report, whole.
func TestImportDialects(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{dialectA, "narrower: files and programs\nwider: model calls\nnarrower: what the source does not bound\nsame: deny \"*\""},
		{dialectB, "narrower: programs\nwider: model calls\nnarrower: what the source does not bound\nnarrower: api.internal.company.com without a port\nsame: deny \"*\"\nwider: filesystem.read\nnarrower: max_processes 10"},
		{full, ""},
	} {
		_, cs, err := Import("x.yaml", []byte(c.src))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range cs {
			got = append(got, x.Kind+": "+x.What)
		}
		if s := strings.Join(got, "\n"); s != c.want {
			t.Errorf("got\n%s\nwant\n%s", s, c.want)
		}
	}
}
