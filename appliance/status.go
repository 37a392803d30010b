package appliance

import (
	"cmp"
	"slices"
	"sync"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
)

// Status is the appliance's account of itself.
func (a *Appliance) Status() control.Status {
	var head ledger.Head
	var lost uint64
	var held int
	var wg sync.WaitGroup // a service that doesn't answer takes lookTime, all of them no more
	wg.Go(func() { head = a.log.Head() })
	wg.Go(func() { lost = a.lostEvents() })
	wg.Go(func() { held = a.held() })
	wg.Wait()
	st := control.Status{
		Version: a.version, Release: a.cfg.Release.Name + " " + a.cfg.Release.Version, Sequence: a.cfg.Release.Sequence,
		Started: a.started, Lost: lost,
		Landlock: landlock(confine.LandlockABI()), Registry: a.cfg.Registry, Agents: a.agentStatuses(), Services: a.serviceStatuses(),
		Pending: held, LedgerSize: uint64(head.Size), LedgerRoot: head.Root.String(),
	}
	if err := a.roomy(); err != nil {
		st.Full = err.Error()
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

// health is what everybody on the host may know: whether work is done, and of
// which release. It asks no service, so that asking costs nothing.
func (a *Appliance) health() (h health) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h.Release, h.Sequence = a.cfg.Release.Name+" "+a.cfg.Release.Version, a.cfg.Release.Sequence
	if a.failure != nil {
		h.Error = a.failure.Error()
	}
	return h
}

type health struct {
	Error    string `json:"error"`
	Release  string `json:"release"`
	Sequence int64  `json:"sequence"`
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
