package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"go.yaml.in/yaml/v4"
)

// AnswersKind heads an answers file, with config.APIVersion.
const AnswersKind = "Answers"

// Answers is what an operator decides. The wizard asks for it, or it is read
// from a file; DefaultAnswers fills in what a release suggests.
type Answers struct {
	APIVersion string `yaml:"apiVersion" json:"apiVersion"`
	Kind       string `yaml:"kind" json:"kind"`

	Profile  string   `yaml:"profile" json:"profile"`                   // "solo" or "cluster"
	Root     string   `yaml:"root" json:"root"`                         // prefix, "/" on an ordinary host
	Operator string   `yaml:"operator" json:"operator"`                 // who installs; goes into the receipt
	Accept   []string `yaml:"accept,omitempty" json:"accept,omitempty"` // weakenings accepted by name, see Weakenings
	Start    string   `yaml:"start" json:"start"`                       // "systemd" or "none"

	Registry    string                     `yaml:"registry" json:"registry"`
	Engine      EngineAnswers              `yaml:"engine" json:"engine"`
	HoldSeconds int                        `yaml:"holdSeconds" json:"holdSeconds"`
	RecordMiB   int                        `yaml:"recordMiB,omitempty" json:"recordMiB,omitempty"`
	UIDBase     int                        `yaml:"uidBase" json:"uidBase"`
	Hosts       map[string]string          `yaml:"hosts,omitempty" json:"hosts,omitempty"`
	Upstreams   map[string]config.Upstream `yaml:"upstreams,omitempty" json:"upstreams,omitempty"`
	Agents      []config.Agent             `yaml:"agents" json:"agents,omitempty"`

	// Cluster is for the profile of that name. Left out of the JSON where it is
	// empty, because that is what a plan's digest is made of.
	Cluster ClusterAnswers `yaml:"cluster,omitempty" json:"cluster,omitzero"`
}

// EngineAnswers is about the embedded model engine, where a release has one.
type EngineAnswers struct {
	Listen string   `yaml:"listen" json:"listen"`                     // loopback address; empty: no engine
	Models []string `yaml:"models,omitempty" json:"models,omitempty"` // item names; empty: all of the release
}

// Weakenings are the names that Answers.Accept may hold. Each lowers the
// protection for good, and is in the receipt and therefore in the ledger.
var Weakenings = map[string]string{
	"tier-T4":        "run without BPF: programs outside an agent's list are stopped by Landlock and the view alone",
	"landlock-old":   "run on a kernel whose Landlock is older than ABI 3 (no truncate control)",
	"clock-unsure":   "run with a clock that is earlier than the release: times in the ledger may be wrong",
	"cgroup-v1":      "run the kubelet on cgroup v1, which Kubernetes maintains no longer: memory limits of pods are coarser",
	"volatile-state": "keep ledger and store on a file system that is lost at power-off",
}

// DefaultAnswers is what a release suggests: every image an agent with the
// policy that the release has for it, every model served.
func DefaultAnswers(r Release) Answers {
	c := config.Default("/")
	a := Answers{
		APIVersion: config.APIVersion, Kind: AnswersKind,
		Profile: "solo", Root: "/", Start: "systemd",
		Registry: c.Registry, HoldSeconds: c.HoldSeconds, UIDBase: c.UIDBase,
		Agents: suggestAgents(r),
	}
	if _, ok := r.program(enginePath); ok {
		a.Engine.Listen = "127.0.0.1:11434"
	}
	return a
}

// suggestAgents pairs images with policies by name; an image without one gets
// the closed preset. What a cluster is made of is no agent.
func suggestAgents(r Release) []config.Agent {
	var out []config.Agent
	for _, it := range r.kind("image") {
		if ofCluster(it.Name) {
			continue
		}
		out = append(out, config.Agent{Name: it.Name, Image: it.Ref, Policy: policyFor(r, it.Name)})
	}
	return out
}

func policyFor(r Release, image string) string {
	ps := r.kind("policy")
	for _, p := range ps {
		if p.Name == image || p.Name == image+"-policy" {
			return p.PolicyName()
		}
	}
	return "sandbox"
}

// LoadAnswers reads an answers file. Fields that it leaves out keep what the
// release suggests, so a file may hold only what differs.
func LoadAnswers(file string, r Release) (Answers, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Answers{}, fmt.Errorf("answers: %w", err)
	}
	a := DefaultAnswers(r)
	a.APIVersion, a.Kind = "", "" // these must be in the file
	agents := a.Agents
	a.Agents = nil // a list in the file replaces the suggestion
	if err := config.Strict(file, b, &a); err != nil {
		return Answers{}, err
	}
	if a.Agents == nil {
		a.Agents = agents
	}
	if err := a.Validate(); err != nil {
		return Answers{}, fmt.Errorf("%s: %w", file, err)
	}
	return a, nil
}

// Kept returns the answers that an installation below root was given, finished
// or not; ok is false where there is none. With them a repair or a resumption
// needs no questions.
func Kept(root string, r Release) (a Answers, ok bool, err error) {
	file := Layout{Prefix: root}.Answers()
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return Answers{}, false, nil
	}
	a, err = LoadAnswers(file, r)
	return a, err == nil, err
}

// Encode renders a so that LoadAnswers gives it back.
func (a Answers) Encode() ([]byte, error) {
	b, err := yaml.Dump(a, yaml.WithV4Defaults())
	if err != nil {
		return nil, fmt.Errorf("answers: encode: %w", err)
	}
	return b, nil
}

func bad(field string, got any, wanted string) error {
	return fmt.Errorf("%s: got %q; wanted %s", field, fmt.Sprint(got), wanted)
}

// Validate says what is wrong in a by itself; what the machine and the release
// say against it is Preflight's.
func (a Answers) Validate() error {
	errs := []error{a.head(), a.words(), config.Loopback("registry", a.Registry), config.UIDRange(a.UIDBase)}
	if a.Engine.Listen != "" {
		errs = append(errs, config.Loopback("engine.listen", a.Engine.Listen))
	}
	for _, w := range a.Accept {
		if _, ok := Weakenings[w]; !ok {
			errs = append(errs, bad("accept", w, "one of "+strings.Join(weakeningNames(), ", ")))
		}
	}
	return errors.Join(append(errs, config.ValidHosts(a.Hosts), config.ValidAgents(a.Agents))...)
}

func (a Answers) head() error {
	switch {
	case a.APIVersion != config.APIVersion:
		return bad("apiVersion", a.APIVersion, config.APIVersion)
	case a.Kind != AnswersKind:
		return bad("kind", a.Kind, AnswersKind)
	case a.Profile == "cluster":
		return a.Cluster.Validate()
	case a.Profile != "solo":
		return bad("profile", a.Profile, `"solo" or "cluster"`)
	case !reflect.DeepEqual(a.Cluster, ClusterAnswers{}):
		return bad("cluster", "settings", `none with the profile "solo"; remove them, or answer profile: cluster`)
	}
	return nil
}

func (a Answers) words() error {
	var errs []error
	if a.Root != "/" {
		errs = append(errs, config.AbsPath("root", a.Root))
	}
	if a.Start != "systemd" && a.Start != "none" {
		errs = append(errs, bad("start", a.Start, `"systemd" or "none"`))
	}
	errs = append(errs, ValidOperator(a.Operator))
	return errors.Join(errs...)
}

// ValidOperator refuses a name that would not read well in an audit record.
func ValidOperator(s string) error {
	control := func(r rune) bool { return r < 0x20 || r == 0x7f }
	if strings.TrimSpace(s) != s || s == "" || len(s) > 128 || strings.ContainsFunc(s, control) {
		return bad("operator", s, "the name of the person who answers for this installation, up to 128 bytes")
	}
	return nil
}

func weakeningNames() []string {
	var out []string
	for w := range Weakenings {
		out = append(out, w)
	}
	slices.Sort(out)
	return out
}

// accepts says whether the operator accepted weakening w.
func (a Answers) accepts(w string) bool { return slices.Contains(a.Accept, w) }

func (a Answers) layout() Layout { return Layout{Prefix: filepath.Clean(a.Root)} }

// Config is the appliance's configuration that these answers lead to.
func (a Answers) Config(r Release) config.Config {
	l := a.layout()
	c := config.Default(l.Prefix)
	c.Release = config.Release{Name: r.Name, Version: r.Version, Sequence: r.Sequence, Digest: r.Digest}
	c.Paths.Slot = l.Slot(r.Version, r.Sequence)
	c.Registry, c.HoldSeconds, c.UIDBase = a.Registry, a.HoldSeconds, a.UIDBase
	c.RecordMiB, c.Hosts, c.Upstreams, c.Agents = a.RecordMiB, a.Hosts, a.Cluster.upstreams(a.Upstreams), a.Agents
	if isCluster(a) {
		c.ClusterNetworks = slices.Clone(clusterRanges)
	}
	if a.accepts("tier-T4") {
		c.AcceptTier = "T4"
	}
	if _, ok := r.program(enginePath); ok && a.Engine.Listen != "" {
		c.Engine = config.Engine{
			Binary: filepath.Join(c.Paths.Slot, enginePath), Listen: a.Engine.Listen,
			Models: a.models(r), UID: a.UIDBase + config.UIDCount,
		}
	}
	return c
}

// models are the refs of the chosen models, or of all.
func (a Answers) models(r Release) []string {
	var out []string
	for _, it := range r.kind("model") {
		if len(a.Engine.Models) == 0 || slices.Contains(a.Engine.Models, it.Name) {
			out = append(out, it.Ref)
		}
	}
	return out
}
