package installer

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/bundle"
)

// Driver branches by what they run (CUDA Toolkit release notes, "CUDA Toolkit
// and Corresponding Driver Versions"): 12.x by minor version compatibility,
// 13.0 natively.
const (
	minDriver  = 525
	goodDriver = 580
)

// spareGPU is what an engine keeps of a GPU besides the weights: KV cache and
// activations. vLLM takes 0.9 of the memory in all by default and fails to
// start when the weights leave nothing for the cache.
const spareGPU = 1.2

var driverRE = regexp.MustCompile(`\s(\d+)\.\d+(\.\d+)?\s`)

// driver is the branch of the loaded driver, 0 without one.
func (q question) driver() int {
	m := driverRE.FindStringSubmatch(q.NVIDIA + " ")
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// wantsGPU says whether a chosen model is served on GPUs.
func (q question) wantsGPU() bool {
	return slices.ContainsFunc(q.a.Cluster.Models, func(s ServingAnswers) bool { return s.GPUs > 0 })
}

// gpuSeverity: a refusal where a model needs GPUs, else a warning.
func (q question) gpuSeverity() Severity {
	if q.wantsGPU() {
		return Refusal
	}
	return Warning
}

// gpuChecks describe the GPUs, whoever uses them.
var gpuChecks = []check{
	{"gpu", "gpus", Note, func(q question) Finding {
		if len(q.GPUs) == 0 {
			return inform("none; models run on the CPU")
		}
		var what []string
		for _, g := range q.GPUs {
			s := g.Model
			if s == "" {
				s = "NVIDIA " + g.Device
			}
			if g.Memory > 0 {
				s += " " + bundle.Size(g.Memory)
			}
			what = append(what, s)
		}
		if q.a.Profile == "solo" {
			return inform(list(what) + "; the embedded engine runs on the CPU all the same")
		}
		return inform(list(what))
	}},
	{"gpu-bound", "gpus", "", func(q question) Finding {
		var wrong []string
		for _, g := range q.GPUs {
			if g.Driver != "" && g.Driver != "nvidia" {
				wrong = append(wrong, g.Address+" to "+g.Driver)
			}
		}
		return verdict(len(wrong) == 0, Warning, "bound "+list(wrong), "GPUs bound to nvidia, or to nothing", "blacklist nouveau, install NVIDIA's driver and boot again")
	}},
	{"gpu-errors", "nvml", Warning, func(q question) Finding {
		var sick []string
		for _, g := range q.GPUs {
			if g.Errors > 0 {
				sick = append(sick, fmt.Sprintf("%s: %d", g.Address, g.Errors))
			}
		}
		return verdict(len(sick) == 0, Warning, "uncorrected memory errors: "+list(sick), "none since boot", "reset the GPU or boot again; replace it if they come back")
	}},
	{"secure-boot", "security", Warning, func(q question) Finding {
		got := "Secure Boot: " + yes(q.Secure) + ", driver loaded: " + yes(q.NVIDIA != "")
		return verdict(!q.Secure || len(q.GPUs) == 0 || q.NVIDIA != "", Warning, got, "a driver that Secure Boot lets in",
			"install the distribution's signed modules (linux-modules-nvidia-…-server-open for the exact kernel); modules that were built here are refused")
	}},
}

// gpuNodeChecks are about GPUs that pods use.
var gpuNodeChecks = []check{
	{"gpu-driver", "gpus", "", func(q question) Finding {
		if len(q.GPUs) == 0 {
			return verdict(!q.wantsGPU(), Refusal, "no NVIDIA GPU", "GPUs for the chosen models", "choose models and engines for the CPU, or another machine")
		}
		n := q.driver()
		f := verdict(n >= goodDriver, q.gpuSeverity(), fmt.Sprintf("driver branch %d", n), fmt.Sprintf("%d or newer (CUDA 13)", goodDriver), "install the driver's packages (bundle/deb makes a closure) and boot again")
		if n >= minDriver && f.Severity == Refusal {
			f.Severity = Warning
			f.Remedy = "images with CUDA 12 run; those with CUDA 13 need a newer driver"
		}
		return f
	}},
	{"gpu-toolkit", "tools", "", func(q question) Finding {
		p := q.Tools["nvidia-container-runtime"]
		got := "nvidia-container-runtime at " + list(strings.Fields(p))
		// K3s looks once, when it starts, and only where its PATH leads.
		return verdict(len(q.GPUs) == 0 || strings.HasPrefix(p, "/usr/bin/"), q.gpuSeverity(), got, "it in /usr/bin before K3s starts", "install nvidia-container-toolkit first; if K3s runs already, restart it afterwards")
	}},
	{"gpu-fabric", "nvml", Warning, func(q question) Finding {
		got := fmt.Sprintf("%d NVSwitch, fabric manager: %s", q.NVLink.Switches, yes(q.NVLink.Manager))
		return verdict(q.NVLink.Switches == 0 || q.NVLink.Manager, q.gpuSeverity(), got, "a running fabric manager on boards with NVSwitch", "install nvidia-fabricmanager of the driver's exact version and enable its service; CUDA starts nothing without it")
	}},
	{"gpu-mig", "nvml", Warning, func(q question) Finding {
		n := 0
		for _, g := range q.GPUs {
			if g.MIG {
				n++
			}
		}
		got := fmt.Sprintf("%d of %d GPUs in MIG mode", n, len(q.GPUs))
		return verdict(n == 0, q.gpuSeverity(), got, "whole GPUs", "nvidia-smi -mig 0: the device plugin here offers whole GPUs only")
	}},
	{"gpu-memory", "", "", gpuMemory},
}

// Fit holds a chosen model against the GPUs that it gets.
type Fit struct {
	Model string `json:"model"`
	GPUs  int    `json:"gpus"`
	Need  int64  `json:"need"` // bytes, with what the engine keeps besides
	Have  int64  `json:"have"` // bytes; 0: not known
}

// fits deals the GPUs out in order, as the device plugin may; the ones with
// least memory are assumed, so that a fit is one whichever it gets.
func (q question) fits() (out []Fit) {
	free := make([]int64, 0, len(q.GPUs))
	for _, g := range q.GPUs {
		free = append(free, g.Memory)
	}
	slices.Sort(free)
	for _, s := range q.a.Cluster.Models {
		if s.GPUs == 0 {
			continue
		}
		it, _ := q.r.item("model", s.Model)
		f := Fit{Model: s.Model, GPUs: s.GPUs, Need: int64(float64(it.Size) * spareGPU)}
		n := min(s.GPUs, len(free))
		for _, m := range free[:n] {
			f.Have += m
		}
		free = free[n:]
		out = append(out, f)
	}
	return out
}

func gpuMemory(q question) Finding {
	used := 0
	for _, s := range q.a.Cluster.Models {
		used += s.GPUs
	}
	if used > len(q.GPUs) {
		return verdict(false, Refusal, fmt.Sprintf("models on %d GPUs, %d there", used, len(q.GPUs)), "a GPU for each", "give models fewer GPUs, or leave some out")
	}
	var short, got []string
	for _, f := range q.fits() {
		s := fmt.Sprintf("%s needs %s of %s", f.Model, bundle.Size(f.Need), bundle.Size(f.Have))
		got = append(got, s)
		if f.Need > f.Have {
			short = append(short, s)
		}
	}
	if why := q.Failed["nvml"]; why != "" && q.wantsGPU() {
		return verdict(false, Refusal, "memory not known: "+why, "the GPUs' memory", "install the driver with its nvidia-smi")
	}
	if len(short) > 0 {
		return verdict(false, Refusal, list(short), "weights and a fifth more in the model's GPUs", "give it more GPUs, or choose a smaller model or precision")
	}
	return Finding{Severity: OK, Got: list(got)}
}
