package model

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Profile is one form in which a model is published.
type Profile struct {
	Name      string `yaml:"name" json:"name"`
	Precision string `yaml:"precision,omitempty" json:"precision"` // a row of precisions
	Weights   int64  `yaml:"weights,omitempty" json:"weights"`     // bytes
	// GPUs that the profile is built for; 0: any number.
	GPUs int64 `yaml:"gpus,omitempty" json:"gpus,omitempty"`
}

// Target is the GPUs of the host that the model is for.
type Target struct {
	GPU   string `yaml:"gpu" json:"gpu"`                                 // a row of GPUs, such as h100-80gb
	Count int64  `yaml:"count,omitempty" json:"count,omitempty"`         // default 1
	MiB   int64  `yaml:"memoryMiB,omitempty" json:"memoryMiB,omitempty"` // of each, as nvidia-smi says; default: the table's
}

// GPU is what the choice depends on: memory, and compute capability, which says
// what the tensor cores multiply.
type GPU struct {
	MiB        int64
	Capability int // major times ten plus minor
}

// GPUs are NVIDIA's data centre and workstation cards: memory as nvidia-smi
// reports it, to within a percent, and compute capability (CUDA programming
// guide, "Compute Capabilities").
var GPUs = map[string]GPU{
	"v100-16gb": {16160, 70}, "v100-32gb": {32510, 70}, "t4": {15360, 75},
	"a100-40gb": {40960, 80}, "a100-80gb": {81920, 80}, "a30": {24576, 80}, "a10": {23028, 86}, "a10g": {23028, 86}, "a40": {46068, 86},
	"l4": {23034, 89}, "l40": {46068, 89}, "l40s": {46068, 89}, "rtx-6000-ada": {49140, 89}, "rtx-4090": {24564, 89},
	"h100-80gb": {81559, 90}, "h100-nvl": {95830, 90}, "h200": {143771, 90}, "gh200-96gb": {97871, 90}, "gh200-144gb": {147456, 90},
	"b200": {183359, 100}, "b300": {275040, 103}, "gb200": {189471, 100},
	"rtx-pro-6000-blackwell": {97887, 120}, "rtx-5090": {32607, 120},
}

// precisions says what a GPU must be able to multiply for a profile, and which
// profile is the better one: the higher rank keeps more of the model's quality.
var precisions = map[string]struct{ capability, rank int }{
	"fp32": {0, 6}, "bf16": {80, 5}, "fp16": {70, 5}, "fp8": {89, 4}, "int8": {75, 3}, "nvfp4": {100, 2}, "mxfp4": {80, 2}, "int4": {75, 1},
}

// What is left for other things than weights. Engines leave a tenth of the
// memory alone (vLLM: gpu_memory_utilization 0.9); CUDA, activations and a cache
// for one long request take some 2 GiB and a twentieth of the weights.
const (
	usable   = 90 // per cent of memory
	cacheMin = 2 << 30
	cachePer = 20 // weights over this
)

// Choice is a profile and how it is run, with the reasons.
type Choice struct {
	Profile
	TensorParallel int64 // GPUs that share the weights
	Why            []string
}

// Select takes the most precise profile that the target's GPUs can multiply and
// hold, on as few of them as possible. The error has the reasons too.
func Select(t Target, ps []Profile) (Choice, error) {
	g, err := t.gpu()
	if err != nil {
		return Choice{}, err
	}
	ps = slices.Clone(ps)
	slices.SortStableFunc(ps, func(a, b Profile) int {
		return cmp.Or(precisions[b.Precision].rank-precisions[a.Precision].rank, cmp.Compare(a.Weights, b.Weights), strings.Compare(a.Name, b.Name))
	})
	var out Choice
	for _, p := range ps {
		n, why, err := p.fits(t, g)
		if err != nil {
			return Choice{}, err
		}
		if n > 0 && out.TensorParallel == 0 {
			out.Profile, out.TensorParallel = p, n
			why += ": chosen"
		}
		out.Why = append(out.Why, p.Name+": "+why)
	}
	if out.TensorParallel == 0 {
		return out, fmt.Errorf("no profile fits %d × %s: take a smaller model, more GPUs, or a profile of lower precision\n  %s", t.Count, t.GPU, strings.Join(out.Why, "\n  "))
	}
	return out, nil
}

func (t *Target) gpu() (GPU, error) {
	g, ok := GPUs[t.GPU]
	if !ok {
		return g, fmt.Errorf("GPU %.40q: want one of %s", t.GPU, strings.Join(sortedKeys(GPUs), ", "))
	}
	if t.Count == 0 {
		t.Count = 1
	}
	if t.MiB != 0 {
		g.MiB = t.MiB
	}
	if t.Count < 1 || t.Count > 1024 || g.MiB < 1<<10 || g.MiB > 1<<24 {
		return g, fmt.Errorf("%d GPUs of %d MiB: want 1 to 1024, of 1 GiB to 16 TiB", t.Count, g.MiB)
	}
	return g, nil
}

// fits returns the number of GPUs that the profile needs, 0 if it can't run.
// Tensors are split over powers of two.
func (p Profile) fits(t Target, g GPU) (int64, string, error) {
	pr, ok := precisions[p.Precision]
	if !ok {
		return 0, "", fmt.Errorf("profile %s: precision %.20q, want one of %s (its files don't say it where this is empty)", p.Name, p.Precision, strings.Join(sortedKeys(precisions), ", "))
	}
	if p.Weights < 1 || p.Weights > 1<<50 || p.GPUs < 0 {
		return 0, "", fmt.Errorf("profile %s: %d bytes of weights for %d GPUs, want their size", p.Name, p.Weights, p.GPUs)
	}
	if g.Capability < pr.capability {
		return 0, fmt.Sprintf("%s needs compute capability %d.%d, %s has %d.%d", p.Precision, pr.capability/10, pr.capability%10, t.GPU, g.Capability/10, g.Capability%10), nil
	}
	each := g.MiB << 20 / 100 * usable
	for n := int64(1); n <= t.Count; n *= 2 {
		need := p.need(n)
		if need <= each && (p.GPUs == 0 || p.GPUs == n) {
			return n, fmt.Sprintf("%s of weights need %s on each of %d × %s, which gives %s", gib(p.Weights), gib(need), n, t.GPU, gib(each)), nil
		}
	}
	if p.GPUs > t.Count {
		return 0, fmt.Sprintf("is built for %d GPUs, the target has %d", p.GPUs, t.Count), nil
	}
	n := t.Count
	return 0, fmt.Sprintf("%s of weights need %s on each of %d × %s, which gives %s: too large", gib(p.Weights), gib(p.need(n)), n, t.GPU, gib(each)), nil
}

// need is the memory on each of n GPUs, in bytes.
func (p Profile) need(n int64) int64 {
	share := (p.Weights + n - 1) / n
	return share + share/cachePer + cacheMin
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

// GPUNames are the rows of GPUs, sorted.
func GPUNames() []string { return sortedKeys(GPUs) }

// byTensor maps the tensor types of safetensors and GGUF to rows of precisions:
// what an engine must multiply, or hold, which is the larger one.
var byTensor = []struct{ prefix, precision string }{
	{"bf16", "bf16"},
	{"f16", "fp16"},
	{"f32", "fp32"},
	{"f8_", "fp8"},
	{"i8", "int8"},
	{"q8_", "int8"},
	{"mxfp4", "mxfp4"},
	{"q4_", "int4"},
	{"q5_", "int8"},
	{"q6_", "int8"},
	{"iq4_", "int4"},
}

// byMethod maps what config.json calls a quantization to rows of precisions.
var byMethod = map[string]string{"fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "awq": "int4", "gptq": "int4"}

// Complete fills in what a profile leaves open from what its files say: the size
// of the weights, and the precision where the tensors' type or config.json tells.
func (x Facts) Complete(p Profile) Profile {
	if p.Weights == 0 {
		p.Weights = x.Weights
	}
	if p.Precision == "" {
		p.Precision = byMethod[x.Quantization]
	}
	for _, t := range byTensor {
		if p.Precision == "" && strings.HasPrefix(x.Precision, t.prefix) {
			p.Precision = t.precision
		}
	}
	return p
}
