package policies

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
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
			head + "inference: {routes: [{models: ['*'], upstream: local}, {models: [a], upstream: x}]}\n", "narrower: calls of the model a now go to local, were for x",
		},
		{ // what the first route no longer takes, the second one does
			head + "inference: {routes: [{models: [a], upstream: local}, {models: ['*'], upstream: x}]}\n",
			head + "inference: {routes: [{models: ['*'], upstream: x}]}\n", "wider: calls of the model a now go to x, were for local",
		},
		{
			head + "inference: {routes: [{models: [a], upstream: x}]}\n",
			head + "inference: {routes: [{models: [a], upstream: x}, {models: [a], upstream: local}]}\n", "same: calls of every model go where they went, by other routes",
		},
		{rule(", path: /a, access: full"), rule(", access: full"), "wider: the path that the rule at a.example:443 is for is now none, was /a"},
		{
			head + "network: {allow: [{host: a.example, allowedIPs: [10.0.0.0/8]}]}\n", head + "network: {allow: [a.example]}\n",
			"wider: the addresses that a.example, ports 80 and 443 may lead to are now public ones, were 10.0.0.0/8",
		},
		{ // /bin/b was held to reading
			head + "network: {allow: [{host: a.example, protocol: http, access: read-only, binaries: [/bin/a, /bin/b]}, a.example]}\n",
			head + "network: {allow: [{host: a.example, protocol: http, access: read-only, binaries: [/bin/a]}, a.example]}\n",
			"narrower: agent may no longer use it at a.example, ports 80 and 443 from /bin/b\n" +
				"wider: what the rule for a.example, ports 80 and 443 no longer governs, the rule for a.example, ports 80 and 443 does",
		},
		{ // without the first rule nobody looks at names
			head + "network: {allow: [a.example, {domain: a.example, protocol: tcp}]}\n", head + "network: {allow: [{domain: a.example, protocol: tcp}]}\n",
			"wider: agent reaches a.example, ports 80 and 443 as the rule for domain a.example, ports 80 and 443 says, which the one that is gone no longer holds in check",
		},
		{ // the budget is that of the first of equals
			head + "network: {allow: [{host: a.example, budget: {up: 1MiB}}, {domain: a.example}]}\n", head + "network: {allow: [{domain: a.example}, {host: a.example, budget: {up: 1MiB}}]}\n",
			"wider: the rule for domain a.example, ports 80 and 443 now comes before the one for a.example, ports 80 and 443: where both say the same, credentials and budget are its own",
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

// more says what q gives an agent for r that p does not, as far as Decide and
// Endpoint know it.
func more(p, q *Policy, r Request) string {
	a, b := p.Decide(r), q.Decide(r)
	switch {
	case b.Verdict != Allow:
	case r.Action == Infer && b.Upstream == Local && a.Upstream != "": // what is said stays here
	case a.Verdict != Allow, a.Upstream != b.Upstream:
		return fmt.Sprintf("%s: %+v became %+v", r, a, b)
	case r.Action == Connect:
		r.Message = nil
		x, _ := p.Endpoint(r)
		y, _ := q.Endpoint(r)
		if max(1, treatment(&y)) > max(1, treatment(&x)) {
			return fmt.Sprintf("%s: as %s, was as %s", r, y.words(), x.words())
		}
	}
	return ""
}

// edited is p as somebody could have changed it.
func (w world) edited(p *Policy) *Policy {
	q := *p
	allow, routes := slices.Clone(p.Network.Allow), slices.Clone(p.Inference.Routes)
	at := func(n int) (i, end int) { i = w.IntN(n + 1); return i, min(i+1, n) }
	i, end := at(len(allow))
	switch w.IntN(7) {
	case 0:
		allow = slices.Delete(allow, i, end)
	case 1:
		allow = slices.Insert(allow, i, w.rule(Allow))
	case 2, 3, 4:
		if i == end {
			break
		}
		x := HostRule{Host: allow[i].Host, CIDR: allow[i].CIDR, Domain: allow[i].Domain}
		w.terms(&x)
		h := &allow[i]
		switch {
		case w.IntN(3) == 0:
			h.Binaries = x.Binaries
		case w.IntN(2) == 0:
			h.AllowedIPs = x.AllowedIPs
		case h.Inspected() && x.Inspected():
			h.Path = x.Path
		}
	case 5:
		w.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	case 6:
		i, end := at(len(routes))
		routes = slices.Delete(routes, i, end)
	}
	q.Network.Allow, q.Inference.Routes = allow, routes
	return &q
}

// Whatever else is said of a change: where an agent may do more, a line says wider.
func TestDiffHidesNothing(t *testing.T) {
	base, pairs := preset(t, "sandbox"), 0
	for seed := range uint64(3000) {
		w := world{rand.New(rand.NewPCG(seed, 7))}
		p := w.policy(base)
		for i := range p.Network.Allow { // few destinations, so that rules meet
			if h := &p.Network.Allow[i]; seed%4 > 0 {
				h.Host, h.Domain, h.CIDR, h.Ports = "a.b", "", "", nil
				if w.IntN(3) == 0 {
					h.Host, h.Domain = "", "b"
				}
			}
		}
		p, err := Parse("p.yaml", p.YAML())
		if err != nil {
			continue // it contradicts itself
		}
		q, err := Parse("q.yaml", w.edited(p).YAML())
		if err != nil {
			continue
		}
		pairs++
		ds := Diff(p, q)
		if slices.ContainsFunc(ds, func(d Difference) bool { return d.Kind == Wider }) {
			continue
		}
		for range 30 {
			if s := more(p, q, w.about(p)); s != "" {
				t.Fatalf("seed %d: %s\nthe difference says %v\nfrom\n%sto\n%s", seed, s, ds, p.YAML(), q.YAML())
			}
		}
	}
	if pairs < 400 {
		t.Errorf("only %d pairs of policies were compared", pairs)
	}
}
