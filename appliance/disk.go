package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"golang.org/x/sys/unix"
)

// maxCounted bounds how many files of an agent are counted.
const maxCounted = 200_000

// roomy refuses one more agent where the ledger could soon take no records of it,
// which would end all agents.
func (a *Appliance) roomy() error {
	free, err := freeBytes(a.cfg.Paths.Ledger)
	if err != nil {
		return control.Errorf("refused", "no agent is launched: how much is free for the ledger in %s can't be told: %v", a.cfg.Paths.Ledger, err)
	}
	if free < config.LaunchRoom {
		return control.Errorf("refused", "no agent is launched: %.1f MB are free for the ledger in %s, want %.1f MB; %s",
			float64(free)/1e6, a.cfg.Paths.Ledger, config.LaunchRoom/1e6, config.MakeRoom)
	}
	return nil
}

// makeRoom stops the agent that has written most when the disk is nearly full.
// Writable folders have no quota of their own yet (docs/threat-model.md).
func (a *Appliance) makeRoom() {
	free, err := freeBytes(a.cfg.Paths.Ledger)
	if err != nil || free >= config.StopRoom {
		return
	}
	var worst *agent
	var most int64
	for _, ag := range a.runningAgents() {
		if n := used(ag.dir); n > most {
			worst, most = ag, n
		}
	}
	if worst == nil {
		return // not an agent's doing; the ledger refuses when it is full
	}
	detail := fmt.Sprintf("%d bytes are free for the ledger, and this agent has written %d: it is stopped", free, most)
	slog.Error("the disk is nearly full", "agent", worst.Name, "free", free, "written", most)
	rec := a.lifecycle(worst, ledger.Denied, "budget.disk", detail)
	if err := a.log.Record(context.Background(), rec); err != nil {
		a.fail(err)
		return
	}
	if err := a.Stop(context.Background(), worst.Name, 0); err != nil {
		slog.Error("agent did not stop", "agent", worst.Name, "error", err)
	}
}

// runningAgents lists the agents whose sandbox runs.
func (a *Appliance) runningAgents() (out []*agent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ag := range a.agents {
		ag.mu.Lock()
		if ag.box != nil {
			out = append(out, ag)
		}
		ag.mu.Unlock()
	}
	return out
}

func freeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// hidden is what counts for a folder that can't be looked into: its path is
// too long to be named, which only somebody who hides makes happen.
const hidden = 1 << 40

// used adds up the blocks of an agent's files, as far as maxCounted goes.
func used(dir string) (n int64) {
	count := 0
	filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if count++; count > maxCounted {
			return fs.SkipAll
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		switch {
		case errors.Is(err, unix.ENAMETOOLONG):
			n += hidden
		case err == nil:
			n += st.Blocks * 512
		}
		return nil // files come and go while the agent runs
	})
	return n
}
