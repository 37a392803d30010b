package policies

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// programs reads process.exec: paths, or {path, sha256}.
func (d *decoder) programs(n *yaml.Node) {
	p := &d.p.Process
	p.Exec, p.ExecHashes = []string{}, nil
	flat := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style, Line: n.Line, Column: n.Column}
	for _, c := range n.Content {
		if c.Kind == yaml.MappingNode {
			c = d.pinned(c)
		}
		if c != nil {
			flat.Content = append(flat.Content, c)
		}
	}
	p.Exec = d.paths(flat, "process.exec")
}

var hexForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// pinned notes the hash of one program and gives back the node of its path.
func (d *decoder) pinned(n *yaml.Node) (path *yaml.Node) {
	hash := ""
	d.object(n, "process.exec", object{
		"path": func(c *yaml.Node) { path = c },
		"sha256": func(c *yaml.Node) {
			s, ok := d.str(c, "sha256")
			if ok && !hexForm.MatchString(s) {
				d.fail(c, quote(s), "64 lower-case hexadecimal digits for sha256", "write what sha256sum prints for the program in the image")
			}
			hash = s
		},
	})
	switch {
	case path == nil || hash == "":
		d.fail(n, "an entry without path or sha256", "both", "write {path: /usr/bin/node, sha256: ...}, or the path alone")
	case strings.HasSuffix(path.Value, "/"):
		d.fail(path, quote(path.Value)+" with a sha256", "one program", "name the program: a folder has no content of its own")
	default:
		if d.p.Process.ExecHashes == nil {
			d.p.Process.ExecHashes = map[string]string{}
		}
		d.p.Process.ExecHashes[path.Value] = "sha256:" + hash
	}
	return path
}

// own is the word for ids that the appliance gives to one agent only.
const own = "own"

// maxID leaves out the two values that the kernel takes for "none".
const maxID = 1<<32 - 3

// id reads a numeric user or group, or "own".
func (d *decoder) id(n *yaml.Node, what string, to *string) {
	if n.Kind == yaml.ScalarNode && n.Value == own {
		*to = own
		return
	}
	if n.Kind == yaml.ScalarNode && n.Value == "0" {
		d.fail(n, "0, root", `"own" or an id from 1 for `+what, "an agent never runs as root")
		return
	}
	plain := *n
	if plain.Tag == "!!str" && decimal.MatchString(plain.Value) {
		plain.Tag = "!!int" // ids are written both ways
	}
	if _, ok := d.integer(&plain, what+` (or the word "own")`, 1, maxID); ok {
		*to = n.Value
	}
}

// harmless are the capabilities that an agent may have: each acts only inside
// its own namespaces or its own budgets.
var harmless = map[string]string{
	"NET_BIND_SERVICE": "ports below 1024 of its own network namespace",
	"IPC_LOCK":         "locking memory, which budgets.memory counts",
}

// harmful says why each other capability of Linux is refused. The agent is no
// user namespace's root: what it could do with these, it would do to the host.
var harmful = map[string]string{
	"CHOWN":              "it gives files to other users, out of the disk budget",
	"DAC_OVERRIDE":       "it ignores the permissions of files",
	"DAC_READ_SEARCH":    "it ignores the permissions of files and opens them by handle, past the sandbox's root",
	"FOWNER":             "it ignores who owns a file",
	"FSETID":             "it keeps set-user-ID bits",
	"KILL":               "it signals the launcher, which holds the sandbox together",
	"SETGID":             "it becomes any group",
	"SETUID":             "it becomes any user",
	"SETPCAP":            "it hands capabilities on",
	"LINUX_IMMUTABLE":    "it makes files that the host cannot remove",
	"NET_BROADCAST":      "nothing uses it",
	"NET_ADMIN":          "it rebuilds the sandbox's only way out",
	"NET_RAW":            "packet sockets pass the guard by",
	"IPC_OWNER":          "it ignores the permissions of shared memory",
	"SYS_MODULE":         "it loads code into the host's kernel",
	"SYS_RAWIO":          "it reads and writes the host's devices",
	"SYS_CHROOT":         "it changes what paths mean",
	"SYS_PTRACE":         "it reads and changes other processes",
	"SYS_PACCT":          "it changes the host's accounting",
	"SYS_ADMIN":          "it mounts, and much else",
	"SYS_BOOT":           "it restarts the host",
	"SYS_NICE":           "it takes the processor from other agents",
	"SYS_RESOURCE":       "it lifts its own limits",
	"SYS_TIME":           "it sets the host's clock",
	"SYS_TTY_CONFIG":     "it acts on the host's terminals",
	"MKNOD":              "it makes device files",
	"LEASE":              "it delays others who open a file",
	"AUDIT_WRITE":        "it writes into the host's audit log",
	"AUDIT_CONTROL":      "it switches the host's audit log off",
	"SETFCAP":            "it gives capabilities to programs",
	"MAC_OVERRIDE":       "it ignores the host's security module",
	"MAC_ADMIN":          "it reconfigures the host's security module",
	"SYSLOG":             "it reads the host's kernel log",
	"WAKE_ALARM":         "it wakes the host from sleep",
	"BLOCK_SUSPEND":      "it keeps the host from sleep",
	"AUDIT_READ":         "it reads the host's audit log",
	"PERFMON":            "it observes the host's kernel",
	"BPF":                "it loads programs into the host's kernel",
	"CHECKPOINT_RESTORE": "it chooses process ids and reads other processes' maps",
}

func (d *decoder) capabilities(n *yaml.Node) []string {
	out := d.strs(n, "process.capabilities", func(c *yaml.Node, s string) bool {
		choice := slices.Sorted(maps.Keys(harmless))
		want := "one of " + strings.Join(choice, ", ") + " for process.capabilities"
		bare := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
		switch {
		case harmless[s] != "":
			return true
		case harmless[bare] != "":
			d.fail(c, quote(s), want, "write "+bare)
		case harmful[bare] != "":
			d.fail(c, quote(s)+" ("+harmful[bare]+")", want, "remove it: no agent gets this one")
		default:
			d.fail(c, quote(s), want, advice(bare, choice))
		}
		return false
	})
	slices.Sort(out)
	return out
}

// envForm is what every shell takes for a variable's name.
var envForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// headerForm is a field name of RFC 9110, without the characters that no
// registered one has.
var headerForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)

// framing are headers that say where a message begins and ends or to whom it
// goes: no place for a secret.
var framing = []string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive", "content-encoding"}

func (d *decoder) credentials(n *yaml.Node) {
	d.p.Credentials = nil
	d.list(n, "credentials", func(c *yaml.Node) {
		r := Credential{Line: c.Line}
		d.object(c, "credentials", object{
			"name": func(m *yaml.Node) { r.Name = d.label(m, "credentials.name") },
			"env": func(m *yaml.Node) {
				r.Env = d.form(m, "credentials.env", envForm, "the name of an environment variable")
			},
			"header": func(m *yaml.Node) { r.Header = d.header(m) },
		})
		if c.Kind == yaml.MappingNode && (lookup(c, "name") == nil || lookup(c, "env") == nil) {
			d.fail(c, "a credential without name or env", "both", "write {name: github, env: GITHUB_TOKEN}")
		}
		for _, o := range d.p.Credentials {
			if r.Name != "" && o.Name == r.Name || r.Env != "" && o.Env == r.Env {
				d.fail(c, "credential "+r.Name+" in "+r.Env+" beside "+o.Name+" in "+o.Env, "names and variables that differ", "rename one of them")
			}
		}
		d.p.Credentials = append(d.p.Credentials, r)
	})
}

func (d *decoder) form(n *yaml.Node, what string, form *regexp.Regexp, want string) string {
	s, ok := d.str(n, what)
	if ok && !form.MatchString(s) {
		d.fail(n, quote(s), want+" for "+what, "correct the name")
		return ""
	}
	return s
}

func (d *decoder) header(n *yaml.Node) string {
	s := d.form(n, "credentials.header", headerForm, "the name of a request header")
	if slices.Contains(framing, strings.ToLower(s)) {
		d.fail(n, quote(s), "a header that carries values only for credentials.header", "write the one that the service documents, such as Authorization")
		return ""
	}
	return s
}
