package appliance

import (
	"context"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/service"
)

// A sandbox that has used up its disk, its /tmp or its inodes hits that budget with
// every further call. The guard sees each (guard.Full), and tells the supervisor
// once a second at most, which records it as it records other budgets.

// callFull (fullTold) the guard tells the supervisor.
const callFull = "full"

type fullTold struct {
	Agent  string `json:"agent"`
	Budget string `json:"budget"` // disk, tmp or inodes
	Count  int64  `json:"count"`
	Detail string `json:"detail"`
}

// fullEvery is how often one budget of one agent is told of.
const fullEvery = time.Second

// fulls gathers hits. It is safe for concurrent use.
type fulls struct {
	tell    func(fullTold)
	telling sync.Mutex // held while tell is called: whoever has it sees nothing half told

	mu   sync.Mutex
	hits map[fullOf]*fullTold
}

type fullOf struct{ agent, budget string }

// add counts an event. The first of a second is told at once.
func (f *fulls) add(e guard.Event) {
	k := fullOf{e.Scope, fullBudget(e)}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hits[k]
	if h == nil {
		if f.hits == nil {
			f.hits = map[fullOf]*fullTold{}
		}
		h = &fullTold{Agent: k.agent, Budget: k.budget}
		f.hits[k] = h
		time.AfterFunc(0, func() { f.flush(k) })
	}
	h.Count += 1 + int64(e.Skipped)
	h.Detail = e.Syscall + " of " + absolute(e.Dir, e.Path) + ": " + e.Errno.Error()
}

// flush tells of what was counted, and forgets a budget that was not hit since.
func (f *fulls) flush(k fullOf) {
	f.telling.Lock()
	defer f.telling.Unlock()
	f.mu.Lock()
	h := f.hits[k]
	if h == nil || h.Count == 0 {
		delete(f.hits, k)
		f.mu.Unlock()
		return
	}
	t := *h
	h.Count = 0
	time.AfterFunc(fullEvery, func() { f.flush(k) })
	f.mu.Unlock()
	f.tell(t)
}

// drop tells what is left of an agent that ended; on return all is told.
func (f *fulls) drop(agent string) {
	f.telling.Lock()
	defer f.telling.Unlock()
	f.mu.Lock()
	var left []fullTold
	for k, h := range f.hits {
		if k.agent == agent {
			if h.Count > 0 {
				left = append(left, *h)
			}
			delete(f.hits, k)
		}
	}
	f.mu.Unlock()
	for _, t := range left {
		f.tell(t)
	}
}

// fullBudget is the budget that a call ran into. A call that makes a name is taken
// to want an inode: the file systems of a sandbox have few, and keep names where
// they keep inodes.
func fullBudget(e guard.Event) string {
	if slices.Contains(makers, strings.TrimSuffix(strings.TrimSuffix(e.Syscall, "2"), "at")) {
		return "inodes"
	}
	p := absolute(e.Dir, e.Path)
	for _, dir := range memoryDirs {
		if strings.HasPrefix(path.Clean(p)+"/", dir) {
			return "tmp"
		}
	}
	return "disk"
}

// makers are the calls that make names, without the endings of their variants.
var makers = []string{"open", "creat", "mkdir", "mknod", "link", "symlink", "rename"}

// memoryDirs are the folders of a sandbox that lie in memory (confine/mount.go).
var memoryDirs = []string{"/tmp/", "/dev/"}

// tellFull tells the supervisor. What can't be told is no reason to stop: the
// kernel has refused already.
func tellFull(c *service.Conn) func(fullTold) {
	return func(t fullTold) {
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		if err := c.Call(ctx, callFull, t, nil); err != nil {
			slog.Warn("a full disk could not be told", "agent", t.Agent, "budget", t.Budget, "error", err)
		}
	}
}

// full is told that an agent hit a budget of room. The guard names the agent; of
// one that was removed meanwhile there is nothing to record.
func (a *Appliance) full(r *service.Request) error {
	var t fullTold
	if err := r.Decode(&t); err != nil {
		return err
	}
	if !slices.Contains([]string{"disk", "tmp", "inodes"}, t.Budget) || t.Count < 1 {
		return nil
	}
	if ag, err := a.agent(t.Agent); err == nil {
		a.strike(ag, t.Budget, t.Count, t.Detail)
	}
	return nil
}
