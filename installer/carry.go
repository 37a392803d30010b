package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/internal/durable"
)

// carrier carries what an operator decided from one release to another: what
// names an item of the one names the item of the other that is called the same.
type carrier struct {
	l        Layout
	from, to Release
	refs     map[string]string // store names
	notes    []string          // what could not be carried, for the operator
	lost     []string          // models that the cluster served
}

func newCarrier(l Layout, from, to Release) *carrier {
	c := &carrier{l: l, from: from, to: to, refs: map[string]string{}}
	for _, old := range from.Items {
		for _, it := range to.Items {
			if it.Kind == old.Kind && it.Name == old.Name {
				c.refs[old.Ref] = it.Ref
			}
		}
	}
	return c
}

// agents gives each agent the image of the other release. One whose image that
// release doesn't have keeps the one that it has: the store still holds it.
func (c *carrier) agents(as []config.Agent) (all, ours []config.Agent) {
	for _, a := range slices.Clone(as) {
		ref, ok := c.refs[a.Image]
		if !ok {
			c.note(c.keeps(a.Image), a.Name, a.Image, c.to)
			all = append(all, a)
			continue
		}
		a.Image = ref
		all, ours = append(all, a), append(ours, a)
	}
	return all, ours
}

// keeps says of an image that the present release does not have what the other
// one makes of it.
func (c *carrier) keeps(image string) string {
	if slices.ContainsFunc(c.to.Items, func(it Item) bool { return it.Ref == image }) {
		return "agent %s gets another image: the name %s is one of the release %s; if that is not meant, give the agent another image first"
	}
	return "agent %s keeps the image %s: the release %s has none of that name"
}

func (c *carrier) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(c.notes, s) {
		c.notes = append(c.notes, s)
	}
}

// answers are those under which the other release would have been installed.
func (c *carrier) answers(a Answers) Answers {
	_, a.Agents = c.agents(a.Agents)
	var names []string
	for _, it := range c.to.kind("model") {
		names = append(names, it.Name)
	}
	if _, ok := c.to.program(enginePath); !ok {
		a.Engine = EngineAnswers{}
	}
	a.Cluster.Models, c.lost = c.to.serving(a.Cluster.Models)
	for _, m := range c.lost {
		c.note("the cluster serves %s no longer: the release %s has no such model", m, c.to)
	}
	a.Engine.Models = slices.DeleteFunc(slices.Clone(a.Engine.Models), func(m string) bool { return !slices.Contains(names, m) })
	return a
}

// config is the present configuration, which the operator may have edited,
// for the other release. a are answers' results.
func (c *carrier) config(have config.Config, a Answers) config.Config {
	want := a.Config(c.to)
	have.Release, have.Paths.Slot = want.Release, want.Paths.Slot
	have.Agents, _ = c.agents(have.Agents)
	if len(c.lost)+len(a.Cluster.Models) > 0 { // a model's address is its place among them
		if have.Upstreams = maps.Clone(have.Upstreams); have.Upstreams == nil {
			have.Upstreams = map[string]config.Upstream{}
		}
		for _, m := range c.lost {
			delete(have.Upstreams, m)
		}
		for _, m := range a.Cluster.Models {
			have.Upstreams[m.Model] = want.Upstreams[m.Model]
		}
	}
	if have.Engine.Binary == "" {
		return have
	}
	if want.Engine.Binary == "" {
		c.note("no model engine: the release %s has none", c.to)
		have.Engine = config.Engine{}
		return have
	}
	have.Engine.Binary = want.Engine.Binary
	var models []string
	for _, m := range have.Engine.Models {
		if ref, ok := c.refs[m]; ok {
			models = append(models, ref)
		} else {
			c.note("the model %s is not in the release %s", m, c.to)
		}
	}
	if have.Engine.Models = models; len(models) == 0 {
		have.Engine.Models = want.Engine.Models
	}
	return have
}

// records moves the agents that there are to the other release's images, and
// to its policies where the operator has not changed theirs. It returns what
// it did.
func (c *carrier) records(state string) (did []string, err error) {
	found, err := filepath.Glob(filepath.Join(state, "agents", "*", "agent.json"))
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		what, err := c.record(p)
		if err != nil {
			return did, err
		}
		did = append(did, what...)
	}
	return did, nil
}

// record changes one agent's record, of which it knows three fields.
func (c *carrier) record(path string) (did []string, err error) {
	var raw map[string]json.RawMessage
	if err := readJSON(path, &raw); err != nil {
		return nil, err
	}
	var have struct {
		Image, Policy string
		Source        []byte
	}
	b, err := json.Marshal(raw)
	if err == nil {
		err = json.Unmarshal(b, &have)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	name := filepath.Base(filepath.Dir(path))
	if ref, ok := c.refs[have.Image]; ok && ref != have.Image {
		raw["image"], _ = json.Marshal(ref) // a string: can't fail
		did = append(did, name+": "+ref)
	}
	src, err := c.policy(have.Policy, have.Source)
	if err != nil {
		return nil, err
	}
	if src != nil {
		raw["source"], _ = json.Marshal(src)
		did = append(did, name+": the release's "+have.Policy)
	}
	if len(did) == 0 {
		return nil, nil
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(raw, "", "  ")
	if err != nil {
		return nil, err
	}
	return did, durable.WriteFile(path, append(out, '\n'), st.Mode().Perm())
}

// policy is the other release's text of a policy that is as the one release
// brought it; nil where there is nothing to change.
func (c *carrier) policy(name string, src []byte) ([]byte, error) {
	read := func(r Release) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(c.l.Slot(r.Version, r.Sequence), "policies", filepath.Base(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	if name == "" {
		return nil, nil
	}
	old, err := read(c.from)
	if err != nil || old == nil || string(old) != string(src) {
		return nil, err
	}
	b, err := read(c.to)
	if err != nil || b == nil || string(b) == string(src) {
		return nil, err
	}
	return b, nil
}
