package appliance

import (
	"errors"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
)

// TestDriver: who makes an agent's namespaces follows the request, then what
// was before, then the configuration.
func TestDriver(t *testing.T) {
	for _, x := range []struct {
		cluster              bool
		wanted, before, want string
		code                 string // of the refusal
	}{
		{false, "", "", "", ""},
		{false, "local", "pod", "", ""},
		{false, "pod", "", "", "refused"},
		{false, "", "pod", "", "refused"}, // it was one, and the cluster is gone
		{true, "", "", "pod", ""},
		{true, "", "local", "", ""},
		{true, "local", "", "", ""},
		{true, "pod", "local", "pod", ""},
		{true, "docker", "", "", "invalid"},
	} {
		a := &Appliance{}
		if x.cluster {
			a.cfg.Cluster = &config.Cluster{}
		}
		got, err := a.driver(x.wanted, x.before)
		code := ""
		var e *control.Error
		if errors.As(err, &e) {
			code = e.Code
		}
		if got != x.want || code != x.code {
			t.Errorf("%+v: got %q, %v", x, got, err)
		}
	}
}
