package sandbox

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

func TestOlder(t *testing.T) {
	for _, x := range []struct {
		have, want string
		older      bool
	}{
		{"6.18.44-fc", "6.1", false}, {"6.1.0-31-amd64", "6.10", true}, {"6.10.2", "6.10", false}, {"5.15.0-100-generic", "6.1", true}, {"6", "6.1", true}, {"7.0-rc1", "6.18", false},
	} {
		if got := older(x.have, x.want); got != x.older {
			t.Errorf("%s before %s: %v", x.have, x.want, got)
		}
	}
}

// TestDemands: what the policy language can demand, this package can show.
func TestDemands(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(demands)), policies.Features(); !slices.Equal(got, want) {
		t.Errorf("this package shows %v, policies may demand %v", got, want)
	}
	b := newBench(t)
	p := policy()
	p.Require.Kernel, p.Require.Features = "4.19", []string{"disk-quota", "exec-deny"}
	if err := b.l.meets(&Spec{Policy: p, Tier: "T2"}); err != nil {
		t.Skipf("this host: %v", err)
	}
	for _, f := range []string{"cgroup2", "disk-rate"} {
		p.Require.Features = []string{f}
		err := b.l.meets(&Spec{Policy: p})
		if b.l.h.io != (err == nil) && len(b.l.h.v1) == 0 {
			t.Errorf("%s: %v with the controller io: %v", f, err, b.l.h.io)
		}
		if len(b.l.h.v1) > 0 && f == "cgroup2" && (err == nil || !strings.Contains(err.Error(), "cgroup v1")) {
			t.Errorf("cgroup2 on v1: %v", err)
		}
	}
}
