package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A shell is what a start needs before it knows whose it is: a fresh cgroup, a
// launcher that has mounted what every sandbox has, and, by Options.Ahead, a
// network that leads nowhere yet. Making one takes most of a start. With
// Options.Warm, Local keeps some ready. Each serves one start and is new then:
// nothing has run in it but the launcher's own first lines, and no more than
// its place in the queue tells it from a fresh one.
type shell struct {
	g        *group
	p        *launcher
	out, err *late
	ahead    Ahead // nil: nothing was done in its namespace
}

// Ahead is what Options.Ahead has made of a network namespace. It belongs to
// the start that gets it in Spec.Landed, which closes it in the end; one that
// no start got is closed by Local.
type Ahead interface {
	// Fresh says whether it is still good: whoever it depends on may have ended.
	Fresh() bool
	io.Closer
}

// quiet is how long no sandbox starts before new shells are made: whoever has
// just begun shall not share the processors with them.
const quiet = 150 * time.Millisecond

// newShell makes one in the group name.
func (l *Local) newShell(name string) (*shell, error) {
	sh := &shell{out: &late{}, err: &late{}}
	var err error
	if sh.g, err = l.h.newGroup(l.parent, name); err != nil {
		return nil, err
	}
	cmd := exec.Command(l.opt.Launcher, "init", filepath.Join(l.opt.State, "agents"), diskMount)
	cmd.Stdin = strings.NewReader("") // a pipe at its end: package exec would open the host's /dev/null
	cmd.Stdout, cmd.Stderr = sh.out, sh.err
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setsid:     true,
	}
	if sh.p, err = l.start(cmd, sh.g); err != nil {
		return nil, errors.Join(err, sh.g.remove(5*time.Second))
	}
	return sh, nil
}

// furnish makes its network ready. A host that can't do that ahead says so
// when a start asks for it.
func (sh *shell) furnish(ahead func(*os.File) (Ahead, error)) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sh.p.pid))
	if err != nil {
		return
	}
	defer ns.Close()
	if a, err := ahead(ns); err == nil {
		sh.ahead = a
	}
}

// good says whether a start may have it: nobody has ended it, or what it
// depends on.
func (sh *shell) good() bool {
	select {
	case <-sh.p.done:
		return false
	default:
		return sh.ahead == nil || sh.ahead.Fresh()
	}
}

// end is for a shell that was not used.
func (sh *shell) end() error {
	err := errors.Join(sh.g.kill(), sh.p.signal(unix.SIGKILL))
	<-sh.p.done
	if sh.ahead != nil {
		err = errors.Join(err, sh.ahead.Close())
	}
	sh.p.close()
	return errors.Join(err, sh.g.remove(5*time.Second))
}

// shell returns a ready one, or else a new one. Where a network was made ahead,
// only a start that wants it gets it.
func (l *Local) shell(s *Spec) (*shell, error) {
	name := s.Name + "-" + strings.ToLower(rand.Text()[:8])
	if l.opt.Ahead != nil && s.Landed == nil {
		return l.newShell(name)
	}
	for {
		select {
		case sh := <-l.warm:
			if sh.good() {
				return sh, nil
			}
			if err := sh.end(); err != nil {
				return nil, err
			}
		default:
			return l.newShell(name)
		}
	}
}

// Waiting is how many launchers wait for starts now.
func (l *Local) Waiting() int { return len(l.warm) }

// refillSoon has shells made once no more sandboxes start.
func (l *Local) refillSoon() {
	if cap(l.warm) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.soon == nil {
		l.soon = time.AfterFunc(quiet, l.refill)
		return
	}
	l.soon.Reset(quiet)
}

// refill makes as many shells as may wait, one after the other.
func (l *Local) refill() {
	l.filling.Lock()
	defer l.filling.Unlock()
	for len(l.warm) < cap(l.warm) && !l.isClosed() {
		sh, err := l.newShell("warm-" + strings.ToLower(rand.Text()[:8]))
		if err != nil {
			return // a start will meet the same error, and can tell somebody
		}
		if l.opt.Ahead != nil {
			sh.furnish(l.opt.Ahead)
		}
		l.warm <- sh
	}
}

// cool ends all that wait. No start may be under way.
func (l *Local) cool() error {
	l.filling.Lock()
	defer l.filling.Unlock()
	var errs []error
	for {
		select {
		case sh := <-l.warm:
			errs = append(errs, sh.end())
		default:
			return errors.Join(errs...)
		}
	}
}

func (l *Local) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
