package appliance

import (
	"net/http"

	"github.com/clawbox/clawbox/appliance/holds"
)

// approvals is the operator's side of what is held.
func (a *Appliance) approvals() http.Handler {
	return holds.Handler(a.holds, func(agent string) { a.proxy.Recheck(agent) })
}
