package sandbox

import (
	"io"
	"testing"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/policies"
)

// TestPresets starts each policy that ships, and each published dialect, as
// it is: what an operator gets without writing a line.
func TestPresets(t *testing.T) {
	b := newBench(t)
	tests := map[string]struct {
		source          string
		spawns          bool
		writes, refuses string
	}{
		"sandbox":     {"", false, "/tmp/f", "/workspace/f"},
		"development": {"", true, "/workspace/f", "/etc/f"},
		"production":  {"", true, "/workspace/f", "/etc/f"},
		"network":     {"network:\n  allow:\n    - \"api.example.com:443\"\n  deny: \"*\"\n", false, "/tmp/f", "/workspace/f"},
		"agent_policy": {
			"agent_policy:\n  filesystem:\n    read: [\"/data/inputs\"]\n    write: [\"/data/outputs\"]\n  execution:\n    max_processes: 10\n    max_memory_mb: 4096\n    timeout_minutes: 120\n",
			true, "/data/outputs/f", "/data/in",
		},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := policies.Preset(name)
			if x.source != "" {
				p, err = policies.Parse(name+".yaml", []byte(x.source))
			}
			if err != nil {
				t.Fatal(err)
			}
			p.Require.Landlock = min(p.Require.Landlock, b.l.abi) // TestStartFails has the refusal
			watch := func(guard.Scope) (io.Closer, error) { return closer(func() error { return nil }), nil }
			got, code, why := b.run(Spec{Name: "preset", Policy: p, Guard: watch}, "exec=/bin/probe print=x", "write="+x.writes, "write="+x.refuses)
			if code != 0 || got["write="+x.writes] != "ok" || got["write="+x.refuses] == "ok" {
				t.Errorf("%d, %s: %v", code, why, got)
			}
			if spawned := got["exec=/bin/probe print=x"] == "ok print=x: ok x"; spawned != x.spawns || spawned != p.Process.Spawn {
				t.Errorf("starting a program: %q; policy says %v", got["exec=/bin/probe print=x"], p.Process.Spawn)
			}
		})
	}
}
