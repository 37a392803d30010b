package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/internal/durable"
)

// RootOf is the prefix of the installation that a configuration file belongs
// to; ok is false for a file in another place, which is nobody's installation.
func RootOf(configFile string) (root string, ok bool) {
	abs, err := filepath.Abs(configFile)
	if err != nil {
		return "", false
	}
	root, ok = strings.CutSuffix(abs, config.File("/"))
	return filepath.Join("/", root), ok
}

// Boot decides which release a start enters. It is the first thing that the
// installed `clawbox serve` does, and that is always the release which was
// committed last: a release that is tried never decides about itself.
//
//   - A marker "try", and the installer that set it is alive: the marker is used
//     up (renamed to "tried", durably), and then the release is entered.
//   - Nobody watches, and the change was committed: it is finished.
//   - Nobody watches, and it was not: the state of before is put back.
//
// So a release that was entered and not committed is never entered again,
// whatever happens: a crash, a killed installer, a power cut.
func Boot(ctx context.Context, root string) (Start, error) {
	l := Layout{root}
	if !there(l.Changes()) {
		return Start{}, nil
	}
	unlock, err := lock(l.Lock())
	watched := errors.Is(err, ErrBusy)
	if err != nil && !watched {
		return Start{}, err
	}
	if unlock != nil {
		defer unlock()
	}
	c, err := replayChanges(l.Changes())
	if err != nil || c.open == nil {
		return Start{}, err
	}
	if watched {
		return l.watched(c)
	}
	return l.alone(ctx, c)
}

// watched enters the release once.
func (l Layout) watched(c changes) (Start, error) {
	to := c.open.To
	switch {
	case there(l.Try()) && !c.committed && c.returning == "":
		if err := durable.Rename(l.Try(), l.Tried()); err != nil {
			return Start{}, err
		}
		return Start{l.program(to), l.NextConfig(), "entering " + to.String() + " for a try"}, nil
	case there(l.Tried()) && !c.committed:
		return Start{}, fmt.Errorf("%s was entered and has ended; the %s at work decides what runs next: start again when it has", to, c.open.Kind)
	case c.stopped:
		return Start{}, fmt.Errorf("the %s to %s is at work and has stopped the appliance: start again when it has ended", c.open.Kind, to)
	}
	return Start{}, nil
}

// alone ends a change that was cut off.
func (l Layout) alone(ctx context.Context, c changes) (Start, error) {
	j, err := openJournal(l.Changes(), c.size)
	if err != nil {
		return Start{}, err
	}
	defer j.Close()
	switch {
	case c.committed:
		// This program may be the old release's.
		return Start{filepath.Join(l.Current(), mainPath), l.Config(), "finished: " + c.open.String()}, l.finish(*c.open, j)
	case c.touched || there(l.Tried()):
		cfg, err := config.Load(l.Config())
		if err != nil {
			return Start{}, err
		}
		all, err := StateOf(c.open.Profile, cfg, l)
		if err != nil {
			return Start{}, err
		}
		// The release that was tried may still run, or be about to end.
		if err := idle(ctx, cfg.Paths.State, stopTime); err != nil {
			return Start{}, err
		}
		err = l.withoutNode(ctx, c.open.Profile, func() error { return l.giveBack(ctx, *c.open, c.returning, cutOff, all, j) })
		return Start{Said: "taken back: " + c.open.String() + ": " + cutOff}, err
	case there(l.Try()):
		return Start{}, gone(l.Try())
	}
	return Start{}, nil // nothing was touched; the upgrade can be given again
}

// Enter executes what Boot decided. It returns only on an error, or when the
// caller itself is what should run.
func (s Start) Enter(exec func(program string, args []string) error) error {
	if s.Program == "" {
		return nil
	}
	if self, err := os.Executable(); err == nil {
		if to, err := filepath.EvalSymlinks(s.Program); err == nil && to == self {
			return nil
		}
	}
	return exec(s.Program, []string{s.Program, "serve", "--config", s.Config})
}
