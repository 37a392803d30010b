package inspect

import (
	"encoding/json"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

// loose is how a server in Go reads a call: keys in any case, the last wins.
type loose struct {
	Method string
	Params json.RawMessage
}

type looseTool struct {
	Name      string
	Arguments map[string]any
}

// checkLoose holds what was judged against what such a server runs.
func checkLoose(t *testing.T, b []byte, msgs []policies.Message) {
	t.Helper()
	var all []loose
	if json.Unmarshal(b, &all) != nil {
		all = make([]loose, 1)
		if err := json.Unmarshal(b, &all[0]); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
	}
	for i, m := range msgs {
		if all[i].Method != m.RPC && m.RPC != Answered {
			t.Fatalf("%q: judged %q, a server runs %q", b, m.RPC, all[i].Method)
		}
		if m.RPC != toolCall {
			continue
		}
		var c looseTool
		if err := json.Unmarshal(all[i].Params, &c); err != nil || c.Name != m.Tool || len(c.Arguments) != len(m.Args) {
			t.Fatalf("%q: judged %q %v, a server runs %q %v (%v)", b, m.Tool, m.Args, c.Name, c.Arguments, err)
		}
	}
}
