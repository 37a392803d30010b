package policies

import (
	"reflect"
	"strings"
	"testing"
)

// What the differences say.
func TestDiffWords(t *testing.T) {
	rule := func(terms string) string {
		return head + "credentials: [{name: c, env: C}]\nnetwork: {allow: [{host: a.example, ports: [443], protocol: http" + terms + "}]}\n"
	}
	for _, c := range []struct{ a, b, want string }{
		{head, head, ""},
		{head, head + "network: {allow: [a.example]}\n", "wider: agent may now reach a.example, ports 80 and 443"},
		{head + "network: {allow: [a.example]}\n", head, "narrower: agent may no longer reach a.example, ports 80 and 443"},
		{head, head + "network: {deny: [a.example]}\n", "narrower: agent must not reach a.example, any port any more, whatever else allows it"},
		{head, head + "network: {default: hold}\n", "wider: a destination that no rule names is now hold, was deny"},
		{head, head + "process: {exec: [/bin/a]}\n", "wider: agent may now run /bin/a"},
		{head + "process: {exec: [/bin/]}\n", head + "process: {exec: [/bin/, /bin/a]}\n", "same: /bin/a is listed for run; another entry covered it"},
		{head + "process: {exec: [/bin/]}\n", head, "narrower: agent may no longer run /bin/"},
		{head + "process: {exec: [/bin/a]}\n", head + "process: {exec: [{path: /bin/a, sha256: '" + pin + "'}]}\n", "narrower: /bin/a may now run with one content only, sha256:" + pin},
		{head, head + "filesystem: {write: [/tmp, /w]}\n", "wider: agent may now write /w"},
		{head, head + "filesystem: {read: [/usr, /bin, /sbin, /lib, /lib64, /etc, /opt, /app, /proc, /dev, /usr/lib]}\n", "same: /usr/lib is listed for read; another entry covered it"},
		{head, head + "budgets: {cpu: unlimited}\n", "wider: CPU cores: now unlimited, was 1"},
		{head, head + "budgets: {diskWrite: 1MiB}\n", "narrower: writing to disk: now 1MiB a second, was unlimited"},
		{head, head + "require: {kernel: 6.1}\n", "narrower: the kernel demanded of the host is now 6.1, was none"},
		{head + "require: {kernel: 6.10}\n", head + "require: {kernel: 6.9}\n", "wider: the kernel demanded of the host is now 6.9, was 6.10"},
		{head + "require: {tier: T1}\n", head, "wider: the guard tier demanded of the host is now T3, was T1"},
		{rule(", access: read-only"), rule(", access: full"), "wider: access at a.example:443 is now full, was read-only"},
		{rule(", access: full"), rule(", calls: [{method: GET}]"), "narrower: access at a.example:443 is now none, was full\nwider: agent may now call GET at a.example:443"},
		{rule(", calls: [{method: GET}]"), rule(", calls: [{method: GET}], denyCalls: [{path: /x}]"), "narrower: agent must not call /x at a.example:443 any more"},
		{rule(", access: full"), rule(", access: full, binaries: [/bin/a]"), "narrower: agent may no longer use it at a.example:443 from anything but /bin/a"},
		{rule(", access: full, binaries: [/bin/a]"), rule(", access: full, binaries: [/bin/b]"), "wider: agent may now use it at a.example:443 from /bin/b\nnarrower: agent may no longer use it at a.example:443 from /bin/a"},
		{rule(", access: full"), rule(", access: full, credentials: [c]"), "wider: agent may now have put in at a.example:443 the credential c"},
		{
			rule(", access: full"), head + "credentials: [{name: c, env: C}]\nnetwork: {allow: ['a.example:443']}\n",
			"wider: the protocol at a.example:443 is now not inspected, was http\nother: TLS at a.example:443 is no longer decrypted\nnarrower: access at a.example:443 is now none, was full",
		},
		{
			head + "inference: {routes: [{models: [a], upstream: x}, {models: ['*'], upstream: local}]}\n",
			head + "inference: {routes: [{models: ['*'], upstream: local}, {models: [a], upstream: x}]}\n", "other: routes are tried in another order: * at local; a at x",
		},
		{head + "filesystem: {write: [/tmp, /w]}\n", head + "filesystem: {write: [/w, /tmp], workdir: /tmp}\n", "same: the same, in another order"},
	} {
		var got []string
		for _, d := range Diff(mustParse(t, c.a), mustParse(t, c.b)) {
			got = append(got, d.String())
		}
		if s := strings.Join(got, "\n"); s != c.want {
			t.Errorf("from\n%sto\n%sgot\n%s\nwant\n%s", c.a, c.b, s, c.want)
		}
	}
}

// change gives v another value than it has.
func change(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1e9)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		k := reflect.New(v.Type().Key()).Elem()
		change(k)
		e := reflect.New(v.Type().Elem()).Elem()
		change(e)
		m.SetMapIndex(k, e)
		v.Set(m)
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		if e.Kind() != reflect.Struct {
			change(e)
		}
		v.Set(reflect.Append(v.Slice3(0, v.Len(), v.Len()), e))
	}
}

// silent are fields of the reading, not of what was read.
var silent = map[string]bool{"Source": true, "Dialect": true, "Line": true, "at": true, "file": true}

// Each field of a policy, changed alone, is a difference and another digest:
// a field added to the language without a word in Diff or YAML fails here.
func TestDiffCoversEveryField(t *testing.T) {
	n := 0
	var walk func(v reflect.Value, path string, p, q *Policy)
	walk = func(v reflect.Value, path string, p, q *Policy) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if silent[f.Name] {
				continue
			}
			if f.Type.Kind() == reflect.Struct {
				walk(v.Field(i), path+"."+f.Name, p, q)
				continue
			}
			old := reflect.New(f.Type).Elem()
			old.Set(v.Field(i))
			change(v.Field(i))
			n++
			if len(Diff(p, q)) == 0 || len(Diff(q, p)) == 0 || Diff(p, q)[0].Field == "" {
				t.Errorf("a change of %s.%s is not told", path, f.Name)
			}
			if p.Digest() == q.Digest() {
				t.Errorf("a change of %s.%s has no place in the canonical form", path, f.Name)
			}
			v.Field(i).Set(old)
		}
	}
	p := mustParse(t, full)
	fresh := func() *Policy { return mustParse(t, full) }
	q := fresh()
	walk(reflect.ValueOf(q).Elem(), "Policy", p, q)
	walk(reflect.ValueOf(&q.Network.Allow[3]).Elem(), "HostRule", p, q)
	walk(reflect.ValueOf(&q.Network.Allow[3].Calls[0]).Elem(), "CallRule", p, q)
	walk(reflect.ValueOf(&q.Network.Allow[3].DenyCalls[0]).Elem(), "CallRule", p, q)
	walk(reflect.ValueOf(&q.Credentials[0]).Elem(), "Credential", p, q)
	walk(reflect.ValueOf(&q.Inference.Routes[0]).Elem(), "Route", p, q)
	if n < 75 {
		t.Errorf("only %d fields were changed", n)
	}
	if len(Diff(p, q)) != 0 {
		t.Errorf("the walk left something changed: %v", Diff(p, q))
	}
}
