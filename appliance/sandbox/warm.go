package sandbox

import (
	"crypto/rand"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A shell is what a start needs before it knows whose it is: a fresh cgroup,
// and a launcher in fresh namespaces that waits for its Root. Making one takes
// about half of a start. With Options.Warm, Local keeps some ready. Each
// serves one start and is new then: nothing has run in it but the launcher's
// own first lines.
type shell struct {
	g        *group
	p        *launcher
	out, err *late
}

// newShell makes one in the group name.
func (l *Local) newShell(name string) (*shell, error) {
	sh := &shell{out: &late{}, err: &late{}}
	var err error
	if sh.g, err = l.h.newGroup(l.parent, name); err != nil {
		return nil, err
	}
	cmd := exec.Command(l.opt.Launcher, "init")
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

// end is for a shell that was not used.
func (sh *shell) end() error {
	err := errors.Join(sh.g.kill(), sh.p.signal(unix.SIGKILL))
	<-sh.p.done
	sh.p.close()
	return errors.Join(err, sh.g.remove(5*time.Second))
}

// shell returns a ready one, or else a new one.
func (l *Local) shell(name string) (*shell, error) {
	id := strings.ToLower(rand.Text()[:8])
	for {
		select {
		case sh := <-l.warm:
			select {
			case <-sh.p.done: // someone has ended it
				if err := sh.end(); err != nil {
					return nil, err
				}
				continue
			default:
				return sh, nil
			}
		default:
			return l.newShell(name + "-" + id)
		}
	}
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
		l.warm <- sh
	}
}

// cool ends all that wait. No start or refill may be under way.
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
