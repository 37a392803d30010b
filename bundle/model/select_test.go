package model

import (
	"strings"
	"testing"
)

// nano are the published sizes of nemotron-3-nano-30b-a3b, in decimal GB.
var nano = []Profile{{Name: "nvfp4", Precision: "nvfp4", Weights: 19e9}, {Name: "bf16", Precision: "bf16", Weights: 63e9}, {Name: "fp8", Precision: "fp8", Weights: 32e9}}

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		t    Target
		want string // profile, or a part of the error
		tp   int64
	}{
		{Target{GPU: "h100-80gb"}, "bf16", 1},
		{Target{GPU: "h200"}, "bf16", 1},
		{Target{GPU: "l40s"}, "fp8", 1},
		{Target{GPU: "l40s", Count: 2}, "bf16", 2},
		{Target{GPU: "a100-40gb"}, "bf16: 58.7 GiB of weights need", 0},
		{Target{GPU: "a100-40gb", Count: 2}, "bf16", 2},
		{Target{GPU: "a100-40gb", Count: 3}, "bf16", 2},
		{Target{GPU: "rtx-5090"}, "nvfp4", 1},
		{Target{GPU: "l4"}, "nvfp4 needs compute capability 10.0, l4 has 8.9", 0},
		{Target{GPU: "l4", Count: 2}, "fp8", 2},
		{Target{GPU: "l4", Count: 8}, "bf16", 4},
		{Target{GPU: "t4", Count: 16}, "bf16 needs compute capability 8.0", 0},
		{Target{GPU: "l40s", MiB: 20000}, "too large", 0},
		{Target{GPU: "h900"}, "want one of a10, a100-40gb", 0},
		{Target{GPU: "l4", Count: -1}, "want 1 to 1024", 0},
	} {
		got, err := Select(c.t, nano)
		if c.tp == 0 {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: got %s, %v; want %q", c.t, got.Name, err, c.want)
			}
			continue
		}
		if err != nil || got.Name != c.want || got.TensorParallel != c.tp || len(got.Why) != 3 || strings.Count(strings.Join(got.Why, "\n"), ": chosen") != 1 {
			t.Errorf("%+v: got %s on %d, %v\n%s", c.t, got.Name, got.TensorParallel, err, strings.Join(got.Why, "\n"))
		}
	}
	if nano[0].Name != "nvfp4" {
		t.Error("Select sorted its argument")
	}
}

func TestSelectProfiles(t *testing.T) {
	built := []Profile{{Name: "tp4", Precision: "bf16", Weights: 8e9, GPUs: 4}, {Name: "tp1", Precision: "fp8", Weights: 8e9, GPUs: 1}}
	if c, err := Select(Target{GPU: "h100-80gb", Count: 2}, built); err != nil || c.Name != "tp1" {
		t.Errorf("got %s, %v", c.Name, err)
	}
	if c, err := Select(Target{GPU: "h100-80gb", Count: 4}, built); err != nil || c.Name != "tp4" || c.TensorParallel != 4 {
		t.Errorf("got %s, %v", c.Name, err)
	}
	for _, p := range []Profile{{Name: "x", Precision: "fp3", Weights: 1}, {Name: "x", Precision: "fp8"}, {Name: "x", Precision: "fp8", Weights: 1, GPUs: -1}} {
		if _, err := Select(Target{GPU: "h200"}, []Profile{p}); err == nil || !strings.Contains(err.Error(), "profile x") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := Select(Target{GPU: "h200"}, nil); err == nil {
		t.Error("chose of nothing")
	}
}
