package wizard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"charm.land/huh/v2"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/installer"
)

// engineWords are what the engines' options say.
var engineWords = map[string]string{
	"vllm": "vLLM", "ollama": "the embedded engine",
	"nim-cache": "NIM, cache filled for a profile (NIM_CACHE_PATH)", "nim-path": "NIM, model-free (NIM_MODEL_PATH)", "nim-native": "NIM, native (NIM_ENGINE_MODEL_PATH)",
}

func (q *asker) isCluster() bool { return q.a.Profile == "cluster" }
func (q *asker) isServer() bool {
	return q.isCluster() && q.a.Cluster.Role == installer.RoleServer
}

// items are the names of the release's items of one kind.
func (q *asker) items(kind string) (out []string) {
	for _, it := range q.rel.Items {
		if it.Kind == kind {
			out = append(out, it.Name)
		}
	}
	return out
}

// validProfile refuses the cluster where the release has no K3s to make it of.
func (q *asker) validProfile(s string) error {
	has := slices.ContainsFunc(q.rel.Items, func(it installer.Item) bool { return it.Path == "bin/k3s" })
	if s == "cluster" && !has {
		return errors.New("this release has no K3s: choose solo, or bundle bin/k3s")
	}
	return nil
}

// role asks what this node is, and ends the wizard where no further answer
// could make a node of this machine.
func (q *asker) role() error {
	if !q.isCluster() {
		return nil
	}
	q.a.Cluster.Role = installer.RoleServer
	err := q.form("The cluster", huh.NewSelect[string]().Title("This node").Options(
		huh.NewOption("server: the first node of a new cluster", installer.RoleServer),
		huh.NewOption("join: a further node of one that runs", installer.RoleAgent),
	).Value(&q.a.Cluster.Role))
	if err != nil {
		return err
	}
	return q.unfit()
}

// node asks for the node's name and address, and whom it joins.
func (q *asker) node() error {
	if !q.isCluster() {
		return nil
	}
	c := &q.a.Cluster
	c.Node = strings.ToLower(q.facts.Hostname)
	if len(q.facts.Addresses) > 0 {
		c.Address = q.facts.Addresses[0]
	}
	fields := []huh.Field{
		huh.NewInput().Title("Its name in the cluster").Validate(orDefault(c.Node, q.check(func(c *installer.ClusterAnswers, s string) { c.Node = s }, "cluster.node"))).Value(&c.Node),
		q.address(&c.Address),
	}
	if c.Role == installer.RoleAgent {
		fields = append(fields, huh.NewInput().Title("The server's address, such as https://10.0.0.1:6443").Validate(installer.ValidServer).Value(&c.Server))
	}
	if err := q.form("This node", fields...); err != nil {
		return err
	}
	if c.Role == installer.RoleAgent {
		q.say("\nThe token of `clawbox token create` is not asked for here: give it with --token-file.")
	}
	return nil
}

// address is a choice where the host has several, else a line.
func (q *asker) address(v *string) huh.Field {
	const title = "Its address, which the other nodes reach"
	if len(q.facts.Addresses) > 1 {
		return huh.NewSelect[string]().Title(title).Options(huh.NewOptions(q.facts.Addresses...)...).Value(v)
	}
	valid := func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() || !slices.Contains(q.facts.Addresses, s) {
			return fmt.Errorf("got %q; wanted an IPv4 address of this host: %s", s, strings.Join(q.facts.Addresses, ", "))
		}
		return nil
	}
	return huh.NewInput().Title(title).Validate(orDefault(*v, valid)).Value(v)
}

// check makes a field's validation of the answers' own: only what it says
// about this field counts.
func (q *asker) check(set func(*installer.ClusterAnswers, string), field string) func(string) error {
	return func(s string) error {
		c := installer.ClusterAnswers{Role: installer.RoleServer}
		set(&c, s)
		if err := c.Validate(); err != nil && strings.Contains(err.Error(), field) {
			return err
		}
		return nil
	}
}

// tenants asks for the tenants in one line.
func (q *asker) tenants() error {
	if !q.isServer() {
		return nil
	}
	var s string
	valid := func(s string) error {
		ts, err := parseTenants(s)
		if err == nil {
			err = installer.ClusterAnswers{Role: installer.RoleServer, Tenants: ts}.Validate()
		}
		return err
	}
	err := q.form("Tenants", huh.NewInput().
		Title("Tenants, as NAME or NAME=CORES/MEMORY, … (4 cores, 8Gi each otherwise); empty: none").
		Placeholder("acme, lab=2/4Gi").Validate(valid).Value(&s))
	if err != nil {
		return err
	}
	q.a.Cluster.Tenants, err = parseTenants(s)
	return err
}

// parseTenants reads "acme, lab=2/4Gi".
func parseTenants(s string) (out []installer.TenantAnswers, err error) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, bounds, bounded := strings.Cut(part, "=")
		t := installer.TenantAnswers{Name: strings.TrimSpace(name)}
		if bounded {
			cpu, mem, ok := strings.Cut(bounds, "/")
			if !ok || cpu == "" || mem == "" {
				return nil, fmt.Errorf("got %q; wanted NAME=CORES/MEMORY, such as lab=2/4Gi", part)
			}
			t.CPU, t.Memory = strings.TrimSpace(cpu), strings.TrimSpace(mem)
		}
		out = append(out, t)
	}
	return out, nil
}

// serving asks which models the cluster serves, by what, on how many GPUs, and
// holds that against the GPUs' memory until it fits.
func (q *asker) serving() error {
	models, engines := q.items("model"), q.engines()
	if !q.isServer() || len(models) == 0 || len(engines) == 0 {
		return nil
	}
	for {
		if err := q.chooseModels(models, engines); err != nil {
			return err
		}
		if !q.has("gpu-memory") && !q.has("gpu-driver") {
			return nil
		}
		for _, f := range q.refused() {
			if f.Check == "gpu-memory" || f.Check == "gpu-driver" {
				q.say("\n%s: got %s; wanted %s; %s", f.Check, f.Got, f.Wanted, f.Remedy)
			}
		}
	}
}

// engines are the options: an engine and the image that has it.
func (q *asker) engines() (out []huh.Option[string]) {
	for _, name := range q.items("image") {
		for _, x := range installer.EnginesOf(name) {
			out = append(out, huh.NewOption(engineWords[x]+", image "+name, x+" "+name))
		}
	}
	return out
}

func (q *asker) chooseModels(models []string, engines []huh.Option[string]) error {
	q.say("\n%s", q.memoryWords())
	var opts []huh.Option[string]
	for _, it := range q.rel.Items {
		if it.Kind == "model" {
			opts = append(opts, huh.NewOption(fmt.Sprintf("%s, %s of weights", it.Name, bundle.Size(it.Size)), it.Name))
		}
	}
	var chosen []string
	if err := q.form("Models", huh.NewMultiSelect[string]().Title("Models that the cluster serves (none is selected)").
		Options(opts...).Height(min(len(models)+4, 14)).Value(&chosen)); err != nil {
		return err
	}
	q.a.Cluster.Models = nil
	for _, m := range chosen {
		s, err := q.serve(m, engines)
		if err != nil {
			return err
		}
		q.a.Cluster.Models = append(q.a.Cluster.Models, s)
	}
	return nil
}

// memoryWords say what the GPUs have.
func (q *asker) memoryWords() string {
	if len(q.facts.GPUs) == 0 {
		return "No NVIDIA GPU here: only the embedded engine can serve, on the CPU."
	}
	var all int64
	var names []string
	for _, g := range q.facts.GPUs {
		all += g.Memory
		names = append(names, strings.TrimSpace(g.Model+" "+bundle.Size(g.Memory)))
	}
	return fmt.Sprintf("GPUs: %s; %s in all. A model takes its weights and a fifth more.", strings.Join(names, ", "), bundle.Size(all))
}

// serve asks how one model is served.
func (q *asker) serve(model string, engines []huh.Option[string]) (installer.ServingAnswers, error) {
	s := installer.ServingAnswers{Model: model}
	how := engines[0].Value
	gpus := strconv.Itoa(min(len(q.facts.GPUs), 1))
	err := q.form("Model "+model,
		huh.NewSelect[string]().Title("Served by").Options(engines...).Height(min(len(engines)+2, 10)).Value(&how),
		huh.NewInput().Title("GPUs that it gets (0: on the CPU)").Validate(orDefault(gpus, validGPUs)).Value(&gpus),
	)
	if err != nil {
		return s, err
	}
	s.Engine, s.Image, _ = strings.Cut(how, " ")
	s.GPUs, err = strconv.Atoi(gpus)
	if err != nil {
		return s, err
	}
	if s.Engine == "nim-cache" {
		err = q.form("Model "+model, huh.NewInput().Title("Profile that NIM's cache was filled for").Validate(huh.ValidateNotEmpty()).Value(&s.Profile))
	}
	if err == nil && s.GPUs == 0 && s.Engine != "ollama" {
		q.say("\n%s runs on GPUs only; it gets one.", engineWords[s.Engine])
		s.GPUs = 1
	}
	return s, err
}

func validGPUs(s string) error {
	if n, err := strconv.Atoi(s); err != nil || n < 0 || n > 16 {
		return fmt.Errorf("got %q; wanted 0 to 16", s)
	}
	return nil
}

// telemetry asks only where the release can collect any.
func (q *asker) telemetry() error {
	if !q.isServer() || !slices.Contains(q.items("image"), "victoria-metrics") {
		return nil
	}
	return q.form("Telemetry", huh.NewConfirm().Title("Collect metrics of nodes, pods and GPUs? They stay on the cluster.").
		Affirmative("Collect").Negative("No").Value(&q.a.Cluster.Telemetry))
}
