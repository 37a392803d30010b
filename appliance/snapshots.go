package appliance

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
)

// snapshotRoutes are the control socket's part for an agent's kept states.
func (a *Appliance) snapshotRoutes(m *http.ServeMux) {
	m.HandleFunc("GET /v1/agents/{name}/snapshots", answer(a.handleSnapshots))
	m.HandleFunc("POST /v1/agents/{name}/snapshots", answer(func(r *http.Request) (any, error) {
		var q control.SnapshotRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		var s sandbox.Snapshot
		err := a.onFiles(r, "agent.snapshot", q.Name, func(agent string) (err error) {
			s, err = a.boxes.Snapshot(agent, q.Name)
			return err
		})
		return snapshotShown(s), err
	}))
	m.HandleFunc("POST /v1/agents/{name}/restore", answer(func(r *http.Request) (any, error) {
		var q control.SnapshotRequest
		if err := decode(r, &q); err != nil {
			return nil, err
		}
		if err := a.hasSnapshot(r.PathValue("name"), q.Name); err != nil {
			return nil, err
		}
		return struct{}{}, a.onFiles(r, "agent.restore", q.Name, func(agent string) error { return a.boxes.Restore(agent, q.Name) })
	}))
	m.HandleFunc("DELETE /v1/agents/{name}/snapshots/{snap}", answer(func(r *http.Request) (any, error) {
		snap := r.PathValue("snap")
		if err := a.hasSnapshot(r.PathValue("name"), snap); err != nil {
			return nil, err
		}
		return struct{}{}, a.onFiles(r, "agent.snapshot_remove", snap, func(agent string) error { return a.boxes.RemoveSnapshot(agent, snap) })
	}))
}

// hasSnapshot refuses what does not exist, before anything is on the ledger.
func (a *Appliance) hasSnapshot(name, snap string) error {
	ag, err := a.agent(name)
	if err != nil {
		return err
	}
	all, err := a.boxes.Snapshots(ag.Name)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(s sandbox.Snapshot) bool { return s.Name == snap }) {
		return control.Errorf("not_found", "agent %s has no snapshot %q; 'clawbox agent snapshots %s' lists what it has", name, snap, name)
	}
	return nil
}

// onFiles does something to an agent's files that is on the ledger first.
func (a *Appliance) onFiles(r *http.Request, reason, snap string, do func(agent string) error) error {
	if err := a.refusal(); err != nil {
		return err
	}
	name := r.PathValue("name")
	defer a.turns.of(name)() // it neither starts nor goes meanwhile
	ag, err := a.agent(name)
	if err != nil {
		return err
	}
	rec := a.lifecycle(ag, ledger.Allowed, reason, "snapshot "+snap)
	if err := a.log.Record(r.Context(), rec); err != nil {
		return err
	}
	if err := do(ag.Name); err != nil {
		rec = a.lifecycle(ag, ledger.Denied, reason+"_failed", err.Error())
		return errors.Join(control.Errorf("refused", "%v", err), a.log.Record(context.WithoutCancel(r.Context()), rec))
	}
	return nil
}

func (a *Appliance) handleSnapshots(r *http.Request) (any, error) {
	ag, err := a.agent(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	all, err := a.boxes.Snapshots(ag.Name)
	if err != nil {
		return nil, err
	}
	out := []control.Snapshot{}
	for _, s := range all {
		out = append(out, snapshotShown(s))
	}
	return out, nil
}

func snapshotShown(s sandbox.Snapshot) control.Snapshot {
	return control.Snapshot{Name: s.Name, Number: s.Number, Taken: s.Taken, Bytes: s.Bytes, Shared: s.Shared, Held: s.Held}
}
