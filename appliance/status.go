package appliance

import (
	"cmp"
	"slices"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/control"
)

// Status is the appliance's account of itself.
func (a *Appliance) Status() control.Status {
	head := a.log.Head()
	st := control.Status{
		Version: a.version, Release: a.cfg.Release.Name + " " + a.cfg.Release.Version, Sequence: a.cfg.Release.Sequence,
		Started: a.started, Lost: a.lostEvents(),
		Landlock: landlock(confine.LandlockABI()), Registry: a.cfg.Registry, Agents: a.agentStatuses(), Services: a.serviceStatuses(),
		Pending: a.held(), LedgerSize: uint64(head.Size), LedgerRoot: head.Root.String(),
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	st.Tier, st.TierWhy = string(a.tier), a.tierWhy
	st.Weakenings = slices.Clone(a.weakenings)
	st.Engine, st.Models = a.cfg.Engine.Listen, a.cfg.Engine.Models
	if a.engine == nil {
		st.Engine = "none: " + a.engineWhy
	}
	if a.failure != nil {
		st.Error = a.failure.Error()
	}
	return st
}

// agentStatuses describes all agents, by name.
func (a *Appliance) agentStatuses() []control.AgentStatus {
	out := []control.AgentStatus{}
	for _, ag := range a.everyone() {
		out = append(out, ag.status())
	}
	slices.SortFunc(out, func(x, y control.AgentStatus) int { return cmp.Compare(x.Name, y.Name) })
	return out
}
