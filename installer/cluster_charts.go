package installer

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	airgapmanifests "github.com/clawbox/clawbox/airgap-manifests"
	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/model"
	"github.com/clawbox/clawbox/installer/host"
)

// The appliance's own namespaces. Pods of the GPU's are exempt from Pod
// Security: the device plugin works in the kubelet's folder.
const (
	systemNamespace = "clawbox-system" // Helm's records, telemetry
	modelNamespace  = "clawbox-models"
	gpuNamespace    = "clawbox-gpu"
)

var ownNamespaces = []string{systemNamespace, modelNamespace, gpuNamespace, agentsNamespace, accountNamespace, "default", "kube-system", "kube-public", "kube-node-lease"}

// Chart is one Helm release that a cluster runs. Its record lies in Namespace,
// and its objects too unless they say otherwise.
type Chart struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Files     map[string][]byte `json:"files"`
	Values    map[string]any    `json:"values,omitempty"`
	Wait      bool              `json:"wait"` // until its pods are ready
}

// Charts are what a server's cluster runs by these answers, in the order of
// installation: namespaces first, what serves last.
func (a Answers) Charts(f host.Facts, r Release) ([]Chart, error) {
	if a.Profile != "cluster" || a.Cluster.Role != RoleServer {
		return nil, nil
	}
	var out []Chart
	for _, t := range a.spaces(f, r) {
		c, err := tenantChart(t)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	agents, err := agentsChart()
	if err != nil {
		return nil, err
	}
	out = append(out, agents)
	for _, p := range a.parts(f, r) {
		files, err := airgapmanifests.Chart(p.chart)
		if err != nil {
			return nil, err
		}
		p.Files = files
		out = append(out, p.Chart)
	}
	return out, nil
}

// spaces are the namespaces: the appliance's own, then the tenants'.
func (a Answers) spaces(f host.Facts, r Release) []k3s.Tenant {
	// The quota of what serves is the node itself.
	cpu, mem := strconv.Itoa(max(f.CPUs, 1)), fmt.Sprintf("%dMi", f.Memory.Total>>20)
	storage := int64(1 << 30)
	for _, s := range a.Cluster.Models {
		it, _ := r.item("model", s.Model)
		storage += it.Size
	}
	out := []k3s.Tenant{
		{Name: systemNamespace, CPU: cpu, Memory: mem, Pods: 50},
		{Name: gpuNamespace, CPU: cpu, Memory: mem, Pods: 50, Level: "privileged"},
		{Name: modelNamespace, CPU: cpu, Memory: mem, Pods: 50, Storage: fmt.Sprintf("%dMi", storage>>20+1)},
	}
	for _, t := range a.Cluster.Tenants {
		out = append(out, t.tenant())
	}
	return out
}

// tenantChart makes a chart of a namespace's objects.
func tenantChart(t k3s.Tenant) (Chart, error) {
	b, err := t.Manifest()
	if err != nil {
		return Chart{}, err
	}
	return plainChart("space-"+t.Name, b)
}

// plainChart makes a chart of objects that are complete: they have no template in
// them, and nothing of theirs may be taken for one.
func plainChart(name string, objects []byte) (Chart, error) {
	if bytes.Contains(objects, []byte("{{")) {
		return Chart{}, fmt.Errorf("%s: got a manifest with a template in it; this is a fault of the program", name)
	}
	// Recorded in a namespace that is there before those in it.
	return Chart{Name: name, Namespace: "kube-system", Files: map[string][]byte{
		"Chart.yaml":           []byte("apiVersion: v2\nname: space\nversion: 1.0.0\n"),
		"templates/space.yaml": objects,
	}}, nil
}

// part is a chart of ours and the images that it needs, by its values.
type part struct {
	Chart
	chart  string
	images map[string]string // value → item
}

// parts are what runs besides namespaces; each value for an image is filled
// from the release.
func (a Answers) parts(f host.Facts, r Release) []part {
	var out []part
	gpus := len(f.GPUs) > 0
	if gpus {
		out = append(out, part{
			Chart: Chart{Name: "device-plugin", Namespace: gpuNamespace, Wait: true}, chart: "device-plugin",
			images: map[string]string{"image": "nvidia-device-plugin"},
		})
	}
	if a.Cluster.Telemetry {
		p := part{
			Chart: Chart{Name: "telemetry", Namespace: systemNamespace, Wait: true, Values: map[string]any{"node": a.Cluster.address(f)}},
			chart: "telemetry", images: map[string]string{"image": "victoria-metrics"},
		}
		if gpus {
			p.images["exporter"] = "dcgm-exporter"
		}
		out = append(out, p)
	}
	for i := range a.Cluster.Models {
		out = append(out, a.servingPart(i, f, r))
	}
	for i := range out {
		p := &out[i]
		if p.Values == nil {
			p.Values = map[string]any{}
		}
		for v, name := range p.images {
			it, _ := r.item("image", name)
			p.Values[v] = imageRef(it)
		}
	}
	return out
}

// servePort is the port of every model's service.
const servePort = 8000

// serviceAddress is the fixed address of the i-th model. Kubernetes keeps the
// first 256 of a /16 for addresses that are asked for by number (KEP-3070);
// below 64 lie the API's and DNS's.
func serviceAddress(i int) string {
	base := netip.MustParsePrefix(clusterRanges[1]).Addr().As4()
	base[3] = byte(64 + i)
	return netip.AddrFrom4(base).String()
}

// servingPart fills the chart "serving" from the table of consumers.
func (a Answers) servingPart(i int, f host.Facts, r Release) part {
	s := a.Cluster.Models[i]
	it, _ := r.item("model", s.Model)
	c, ready := consumer(s)
	fill := strings.NewReplacer("{name}", s.Model, "{profile}", s.Profile)
	dir := fill.Replace(c.Dir)
	fill = strings.NewReplacer("{dir}", dir, "{name}", s.Model, "{profile}", s.Profile)
	env, args := map[string]any{}, []any{}
	for k, v := range c.Env {
		env[k] = fill.Replace(v)
	}
	for _, v := range c.Args {
		args = append(args, fill.Replace(v))
	}
	p := part{
		chart: "serving", images: map[string]string{"image": s.Image},
		Chart: Chart{Name: s.Model, Namespace: modelNamespace, Wait: true, Values: map[string]any{
			"node": a.Cluster.name(f), "address": serviceAddress(i), "port": servePort, "uid": cmp.Or(c.UID, 1000), "gpus": s.GPUs,
			"args": args, "env": env, "ready": ready,
			"model":     map[string]any{"path": a.layout().model(s, it), "mount": dir, "writable": c.Writable, "bytes": fmt.Sprintf("%dMi", it.Size>>20+1)},
			"resources": map[string]any{"cpu": strconv.Itoa(max(f.CPUs/2, 1)), "memory": fmt.Sprintf("%dMi", servingMemory(s, it, f)>>20)},
		}},
	}
	if c.Writable {
		p.images["helper"] = "busybox"
	}
	return p
}

// servingMemory is the host memory that a pod gets: on the CPU the weights and
// a half, on GPUs what the engine loads through, within the machine's.
func servingMemory(s ServingAnswers, it Item, f host.Facts) int64 {
	n := it.Size*3/2 + 1<<30
	if s.GPUs > 0 {
		n = min(n, 32<<30)
	}
	return min(n, f.Memory.Total*3/4)
}

// consumer is how an engine wants its model, and what answers when it is
// loaded. The embedded engine's folder is laid out by appliance/engine.
func consumer(s ServingAnswers) (model.Consumer, string) {
	for _, c := range model.Consumers {
		if c.Name == s.Engine {
			if strings.HasPrefix(s.Engine, "nim-") {
				return c, "/v1/health/ready"
			}
			c.Args = append(slices.Clone(c.Args), "--port", strconv.Itoa(servePort), "--tensor-parallel-size", strconv.Itoa(s.GPUs))
			return c, "/v1/models"
		}
	}
	return model.Consumer{
		Name: "ollama", Dir: "/models", Args: []string{"serve"},
		Env: map[string]string{"OLLAMA_MODELS": "{dir}", "OLLAMA_HOST": fmt.Sprintf("0.0.0.0:%d", servePort), "OLLAMA_NOPRUNE": "1"},
	}, "/v1/models"
}

// lackingImages are the images that the answers ask for and the release lacks.
func (a Answers) lackingImages(f host.Facts, r Release) (miss []string) {
	for _, p := range a.parts(f, r) {
		for _, name := range p.images {
			if _, ok := r.item("image", name); !ok && !slices.Contains(miss, name) {
				miss = append(miss, name)
			}
		}
	}
	slices.Sort(miss)
	return miss
}

// upstreams tell the router of the models that the cluster serves: inside the
// site, in clear text between the host and its own pods.
func (c ClusterAnswers) upstreams(to map[string]config.Upstream) map[string]config.Upstream {
	if len(c.Models) == 0 {
		return to
	}
	out := map[string]config.Upstream{}
	for k, v := range to {
		out[k] = v
	}
	for i, s := range c.Models {
		out[s.Model] = config.Upstream{URL: fmt.Sprintf("http://%s:%d/v1", serviceAddress(i), servePort), Local: true}
	}
	return out
}

// suffixes of quantities, those that k3s.Tenant takes.
var suffixes = []struct {
	name string
	unit float64
}{
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"m", 1e-3},
	{"k", 1e3},
	{"M", 1e6},
	{"G", 1e9},
	{"T", 1e12},
}

// quantity reads one; Validate has refused what is none.
func quantity(s string) float64 {
	unit := 1.0
	for _, x := range suffixes {
		if n, ok := strings.CutSuffix(s, x.name); ok {
			s, unit = n, x.unit
			break
		}
	}
	n, _ := strconv.ParseFloat(s, 64)
	return n * unit
}

// bounds are a tenant's cores and bytes of memory.
func (t TenantAnswers) bounds() (cpu, mem float64) {
	return quantity(cmp.Or(t.CPU, k3s.DefaultTenant.CPU)), quantity(cmp.Or(t.Memory, k3s.DefaultTenant.Memory))
}
