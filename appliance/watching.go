package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/sys/unix"
)

// startGuard starts the guard, and refuses a host that gives less than the
// operator accepted; one that gives less than T3 is a weakening, recorded at
// each start.
func (a *Appliance) startGuard() error {
	c := guardConfig{Records: a.cfg.RecordBytes(), Pin: a.cfg.Paths.Pin()}
	uid := a.cfg.UIDOf("guard")
	if err := guard.PreparePins(c.Pin, uid); err != nil {
		c.Pin = ""
		if err := a.weaken("guard.unpinned", "what the guard enforces ends with its process: "+err.Error()); err != nil {
			return err
		}
	}
	dir, err := guard.Cgroup2Dir()
	if err != nil {
		return err
	}
	place, err := newBurrow(dir, uid)
	if err != nil {
		return err
	}
	a.burrow, c.Cgroup = place, place.dir
	place.pin = c.Pin
	t := &part{role: "guard"}
	t.spec = func(ctx context.Context) (order, error) {
		w, err := a.openWriter(ctx, "guard")
		if err != nil {
			return order{}, err
		}
		cage := a.cage("guard")
		cage.Keep, cage.Calls, cage.Late, cage.Files = []string{"bpf", "perfmon", "net_admin"}, []string{"bpf", "write"}, true, 4096
		cage.Read, cage.Write = []string{"/proc", "/sys"}, []string{dir, "/dev/null"}
		if c.Pin != "" {
			cage.Write = append(cage.Write, c.Pin)
		}
		leaf, err := place.leaf()
		if err != nil {
			return order{}, errors.Join(err, w.Close())
		}
		return order{service.Spec{Role: "guard", Cage: cage, Config: c, Files: []*os.File{w}, Cgroup: leaf, Handler: a.answerGuard}, []*os.File{w, leaf}}, nil
	}
	t.up = func(ctx context.Context, p *service.Process) error {
		var st guardState
		if err := p.Conn.Call(ctx, callState, nil, &st); err != nil {
			return err
		}
		if err := a.judgeTier(st); err != nil {
			return err
		}
		return a.join(ctx, p, "egress")
	}
	t.down = func(why error) {
		slog.Error("the guard ended: all agents are stopped", "error", why)
		a.stopAll(0)
	}
	return a.employ(context.Background(), t)
}

// judgeTier holds what the guard reaches against what the operator accepted,
// at each start of it: a second guard may reach less than the first.
func (a *Appliance) judgeTier(st guardState) error {
	tier, accept := string(st.Tier), a.cfg.AcceptTier
	if accept == "" {
		accept = "T3"
	}
	if tier > accept {
		return fmt.Errorf("the guard reaches tier %s here (%s), and the operator accepted %s or better; use a kernel with BPF tracing, or install with 'accept: [tier-%s]'",
			tier, st.Why, accept, tier)
	}
	if tier > "T3" {
		if err := a.weaken("guard.tier", fmt.Sprintf("guard tier %s: %s", tier, st.Why)); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tier, a.tierWhy = st.Tier, st.Why
	return nil
}

// lostEvents asks the guard how many events found no room.
func (a *Appliance) lostEvents() uint64 {
	var st guardState
	a.part("guard").look(callState, &st)
	return st.Lost
}

// answerGuard answers what the guard asks.
func (a *Appliance) answerGuard(_ context.Context, r *service.Request) (any, error) {
	switch r.Method {
	case callDir:
		var q dirAsked
		if err := r.Decode(&q); err != nil {
			return nil, err
		}
		// Of sandboxed processes only, whatever the guard has become.
		if u := owner("/proc/" + strconv.Itoa(q.PID)); u < a.cfg.UIDBase || u >= a.cfg.UIDBase+config.UIDCount {
			return "", nil
		}
		name := "cwd"
		if q.FD != unix.AT_FDCWD {
			name = "fd/" + strconv.Itoa(int(q.FD))
		}
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", q.PID, name))
		if err != nil {
			return "", nil // it is gone
		}
		return dir, nil
	case callRunaway:
		var q ref
		if err := r.Decode(&q); err != nil {
			return nil, err
		}
		go a.Stop(context.Background(), q.ID, 0)
		return nil, nil
	case callPaced:
		return nil, a.paced(r)
	case callFull:
		return nil, a.full(r)
	}
	return nil, fmt.Errorf("the guard may not ask for %q", r.Method)
}

// watch begins to watch a sandbox, before anything runs in it.
func (a *Appliance) watch(ctx context.Context, ag *agent, s guard.Scope, programs map[guard.Inode]string) (io.Closer, error) {
	g := a.part("guard") // which knows the agent by now, see introduce
	p := ag.policy()
	// Names that do not exist are reported too: a host file is such a name.
	s.AuditENOENT = true
	s.AuditOpens = p.Audit.Files == "all"
	s.Connects = p.Audit.Network == "all"
	s.Datagrams = []netip.AddrPort{dnsStub}
	s.Violation = guard.Refuse
	if p.Process.Violation == "kill" {
		s.Violation = guard.Kill
	}
	s.Readable = looks(p)
	// The brake of the guard: it freezes whoever fills the ring.
	if err := os.Chown(filepath.Join(s.Cgroup, "cgroup.freeze"), a.cfg.UIDOf("guard"), -1); err != nil {
		slog.Warn("the guard can't slow this agent down", "agent", ag.Name, "error", err)
	}
	w := watching{Scope: s}
	for n, path := range programs {
		w.Programs = append(w.Programs, program{n, path})
	}
	if err := g.call(ctx, callWatch, w, nil); err != nil {
		return nil, err
	}
	return closer(func() error {
		ctx, cancel := context.WithTimeoutCause(context.Background(), drainTime, errStuck)
		defer cancel()
		err := g.call(ctx, callUnwatch, ref{ag.Name}, nil)
		if err == nil {
			err = g.call(ctx, callForget, ref{ag.Name}, nil)
		}
		if errors.Is(err, errDown) || errors.Is(err, service.ErrGone) {
			return nil // what it had pinned ends with the cgroup
		}
		return err
	}), nil
}

// drainTime is what the guard has to tell all that a sandbox did, after a flood
// and to a slow disk.
const drainTime = time.Minute

// dnsStub is where a sandbox's resolver asks (package egress).
var dnsStub = netip.MustParseAddrPort("127.0.0.53:53")

// looks are the folders in which a policy lets the agent look. Not /proc: a name
// there that does not exist may be another process, which is hidden.
func looks(p *policies.Policy) (readable []string) {
	for _, list := range [][]string{p.Filesystem.Read, p.Filesystem.Write, p.Process.Exec} {
		for _, d := range list {
			d = filepath.Clean(d)
			if d != "/" && d != "/proc" && !strings.ContainsAny(d, "*?[") && visible(p, filepath.Join(d, "x")) {
				readable = append(readable, d)
			}
		}
	}
	return readable
}

// steer sends every port of a namespace to one socket, where the guard can.
func (a *Appliance) steer(agent string) func(*os.File, syscall.RawConn) (io.Closer, error) {
	if a.tierNow() == guard.TierNone {
		return nil
	}
	return func(ns *os.File, tcp syscall.RawConn) (io.Closer, error) {
		ctx := context.Background()
		var l *os.File
		var err error
		cerr := tcp.Control(func(fd uintptr) {
			var n int
			if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				l = os.NewFile(uintptr(n), "listener")
			}
		})
		if err := errors.Join(cerr, err); err != nil {
			return nil, err
		}
		defer l.Close()
		if err := a.part("guard").call(ctx, callSteer, ref{agent}, nil, ns, l); err != nil {
			return nil, err
		}
		return closer(func() error {
			err := a.part("guard").call(ctx, callUnsteer, ref{agent}, nil)
			if errors.Is(err, errDown) || errors.Is(err, service.ErrGone) {
				return nil // its end ended the steering
			}
			return err
		}), nil
	}
}

func (a *Appliance) tierNow() guard.Tier {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tier
}

// burrow is a place in the cgroup v2 hierarchy where the guard may make groups:
// it lives in the leaf, and its self-test beside it.
type burrow struct {
	pin string // where it pins, "" for nowhere
	dir string
	uid int
}

const burrowPrefix = "clawbox-guard."

// newBurrow makes one below root, for uid, and removes those of the dead.
func newBurrow(root string, uid int) (*burrow, error) {
	old, _ := filepath.Glob(filepath.Join(root, burrowPrefix+"*"))
	for _, d := range old {
		// An empty one may be another appliance's, whose guard is just being
		// started again.
		_, pid, _ := strings.Cut(filepath.Base(d), ".")
		if _, err := os.Stat("/proc/" + pid); err == nil {
			continue
		}
		os.Remove(filepath.Join(d, "self"))
		os.Remove(d)
	}
	b := &burrow{dir: filepath.Join(root, burrowPrefix+strconv.Itoa(os.Getpid())), uid: uid}
	f, err := b.leaf()
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, f.Close()
}

// leaf is where a guard is born. It is made again if somebody swept it away
// while no guard ran: without it none would ever run again.
func (b *burrow) leaf() (*os.File, error) {
	self := filepath.Join(b.dir, "self")
	if err := os.MkdirAll(self, 0o755); err != nil {
		return nil, fmt.Errorf("a cgroup for the guard: %w", err)
	}
	for _, p := range []string{b.dir, filepath.Join(b.dir, "cgroup.procs"), self, filepath.Join(self, "cgroup.procs")} {
		if err := os.Chown(p, b.uid, b.uid); err != nil {
			return nil, err
		}
	}
	return os.Open(self)
}

// Close removes it, and the place for pins unless something is pinned there.
// The guard has ended.
func (b *burrow) Close() error {
	if b == nil {
		return nil
	}
	if b.pin != "" {
		if err := guard.RemoveNoPins(b.pin); err != nil {
			slog.Warn("the place for pins stays", "error", err)
		}
	}
	for _, d := range []string{filepath.Join(b.dir, "self"), b.dir} {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
