package support

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
)

// content is one file of the archive.
type content struct {
	name string
	read func(*pack) ([]byte, error)
}

// contents are all of them.
var contents = []content{
	{"version.txt", func(p *pack) ([]byte, error) { return []byte(p.o.Version + "\n"), nil }},
	{"doctor.txt", func(p *pack) ([]byte, error) { return []byte(p.o.Findings), nil }},
	{"doctor.json", func(p *pack) ([]byte, error) { return encode(p.o.Facts) }},
	{"host.json", func(p *pack) ([]byte, error) { return encode(host.Gather(p.root)) }},
	{"configuration.yaml", (*pack).configuration},
	{"answers.yaml", (*pack).answers},
	{"release.json", func(p *pack) ([]byte, error) {
		r, err := p.l.ReleaseOf(p.at.Sequence)
		if err != nil {
			return nil, err
		}
		return encode(r)
	}},
	{"install-journal", file(installer.Layout.Journal)},
	{"changes-journal", file(installer.Layout.Changes)},
	{"kept.json", file(installer.Layout.Kept)},
	{"ledger-checkpoint", func(p *pack) ([]byte, error) { return os.ReadFile(filepath.Join(p.cfg.Paths.Ledger, "checkpoint")) }},
	{"ledger.vkey", file(installer.Layout.LedgerV)},
	{"trial.log", file(installer.Layout.TrialLog)},
	{"service.log", func(p *pack) ([]byte, error) {
		if p.o.Log == nil {
			return nil, errors.New("nobody keeps it: the appliance runs in the foreground")
		}
		return p.o.Log(p.ctx)
	}},
}

func file(at func(installer.Layout) string) func(*pack) ([]byte, error) {
	return func(p *pack) ([]byte, error) { return os.ReadFile(at(p.l)) }
}

// pack is one archive at work.
type pack struct {
	ctx   context.Context
	root  string
	o     Options
	l     installer.Layout
	cfg   config.Config
	cfgE  error
	at    installer.Situation
	known []string // secrets, see scrub.go
}

func newPack(ctx context.Context, root string, o Options) *pack {
	p := &pack{ctx: ctx, root: root, o: o, l: installer.Layout{Prefix: root}}
	p.at, _ = installer.Situated(root) // doctor says why not
	if p.cfg, p.cfgE = config.Load(p.l.Config()); p.cfgE != nil {
		p.cfg = config.Default(root)
	}
	p.learn()
	return p
}

func encode(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") }

func (p *pack) configuration() ([]byte, error) {
	if p.cfgE != nil { // it may be anything: nothing of it is taken
		return nil, p.cfgE
	}
	c := p.cfg
	c.Agents, c.Upstreams = plainAgents(c.Agents), plainUpstreams(c.Upstreams)
	return encode(c)
}

func (p *pack) answers() ([]byte, error) {
	r, err := p.l.ReleaseOf(p.at.Sequence)
	if err != nil {
		return nil, err
	}
	a, err := installer.LoadAnswers(p.l.Answers(), r)
	if err != nil {
		return nil, err
	}
	a.Agents, a.Upstreams = plainAgents(a.Agents), plainUpstreams(a.Upstreams)
	return encode(a)
}

// plainAgents are agents without what may be secret in them.
func plainAgents(as []config.Agent) []config.Agent {
	out := append([]config.Agent(nil), as...)
	for i := range out {
		out[i].Command, out[i].Args, out[i].Env = plainArgs(out[i].Command), plainArgs(out[i].Args), plainEnv(out[i].Env)
	}
	return out
}

// plainArgs keeps the program only.
func plainArgs(args []string) (out []string) {
	for i, a := range args {
		if i > 0 || strings.HasPrefix(a, "-") {
			a = removed
		}
		out = append(out, a)
	}
	return out
}

func plainEnv(env []string) (out []string) {
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		out = append(out, name+"="+removed)
	}
	return out
}

func plainUpstreams(us map[string]config.Upstream) map[string]config.Upstream {
	out := map[string]config.Upstream{}
	for name, u := range us {
		if x, err := url.Parse(u.URL); err != nil {
			u.URL = removed
		} else if x.User != nil || x.RawQuery != "" {
			x.User, x.RawQuery = nil, ""
			u.URL = x.String()
		}
		out[name] = u
	}
	return out
}
