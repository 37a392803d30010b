package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/sys/unix"
)

// Events are recorded in batches: one durable write for up to maxBatch events
// or for what comes within a while, whichever is first. Until then they are safe
// in the rings. What was refused or killed is wanted at once; a build opens some
// files every millisecond, and a flush for each few would cost more than they do.
const (
	maxBatch = 1024
	linger   = 2 * time.Millisecond  // after something was refused
	gather   = 50 * time.Millisecond // else, unless somebody waits for the record
)

// witness puts what the guard sees on the ledger.
type witness struct {
	g   *guard.Guard
	rec ledger.Recorder
	// agents finds the policy that an agent is under.
	agents func(id string) (*governing, bool)
	// fail is told that something happened and can't be kept; runaway, that a
	// program runs that should have been killed.
	fail    func(error)
	runaway func(agent string)
	// dir finds out what a relative path was relative to, where the kernel did
	// not tell; nil: nobody does.
	dir func(pid int, fd int32) string
	// spent is told what was recorded; nil: nobody paces the agents.
	spent func([]ledger.Record)
	// full is told of a call that found no room; nil: nobody counts.
	full func(guard.Event)

	broken bool // something could not be recorded

	// Memory for a batch, used again by the next.
	rs    []ledger.Record
	attrs []ledger.Attr
	under governed
}

// governed is the policy of the agent that the last event was about.
type governed struct {
	agent  string
	policy *governing // nil: none is known
}

// Witness puts what the guard sees on a ledger, as the guard's service does, until
// the guard closes, and returns the error that kept an event from the record, if
// any. All agents are under p. It is for programs that measure the guard.
func Witness(g *guard.Guard, rec ledger.Recorder, p *policies.Policy, spent func([]ledger.Record)) (err error) {
	under := &governing{p, p.Digest()}
	w := &witness{g: g, rec: rec, agents: func(string) (*governing, bool) { return under, true }, spent: spent}
	w.runaway = func(agent string) { err = fmt.Errorf("the kernel did not kill an unlisted program of %s", agent) }
	w.fail = func(e error) { err = e }
	w.run()
	return err
}

// run goes on until the guard closes.
func (w *witness) run() {
	var lost uint64
	for e := range w.g.Events() {
		rs, last := w.batch(e)
		rs, lost = w.losses(rs, lost)
		if w.keep(rs); !w.broken {
			w.g.Acknowledge(last) // until then the kernel keeps it for the next guard
		}
	}
	rs, _ := w.losses(nil, lost)
	w.keep(rs)
}

// losses adds a record of events that were lost since there were before.
func (w *witness) losses(rs []ledger.Record, before uint64) ([]ledger.Record, uint64) {
	n := w.g.Lost()
	if n == before {
		return rs, n
	}
	by := map[string]any{}
	for agent, lost := range w.g.LostBy() {
		by[agent] = lost
	}
	return append(rs, ledger.Record{
		Kind: ledger.KindWeakening, Verdict: ledger.Denied, Reason: "guard.lost",
		Detail: fmt.Sprintf("%d events found no room; programs among them were killed, refusals are not recorded", n-before),
		Attrs:  map[string]any{"lost_by": by},
	}), n
}

// keep records a batch. What happened and can't be kept stops every agent; the
// stream is drained all the same, because closing a scope waits for it.
func (w *witness) keep(rs []ledger.Record) {
	if len(rs) == 0 {
		return
	}
	if err := w.rec.Record(context.Background(), rs...); err != nil {
		w.broken = true
		w.fail(fmt.Errorf("an event could not be recorded: %w", err))
		return
	}
	if w.spent != nil {
		w.spent(rs)
	}
}

// batch collects the events that are there already, or come at once, and
// returns the last of them beside their records, which are good until the next
// batch.
func (w *witness) batch(first guard.Event) (rs []ledger.Record, last guard.Event) {
	w.attrs, w.under = w.attrs[:0], governed{}
	rs, last = w.observe(w.rs[:0], first), first
	defer func() { w.rs = rs }()
	begun, hurry := time.Now(), news(first)
	after := time.NewTimer(patienceOf(hurry))
	defer after.Stop()
	for n := 1; n < maxBatch; n++ {
		e, ok := w.next(after.C)
		if !ok {
			return rs, last
		}
		rs, last = w.observe(rs, e), e
		if !hurry && news(e) {
			hurry = true
			after.Reset(max(0, linger-time.Since(begun)))
		}
	}
	return rs, last
}

// next is an event that comes before the timer does.
func (w *witness) next(end <-chan time.Time) (e guard.Event, ok bool) {
	select {
	case e, ok = <-w.g.Events():
		return e, ok
	default:
	}
	select {
	case e, ok = <-w.g.Events():
	case <-w.g.Hurry():
	case <-end:
	}
	return e, ok
}

// news says whether an event is not to wait for others.
func news(e guard.Event) bool {
	return e.Errno != 0 || e.Killed || e.Denied || e.Kind == guard.Trapped
}

func patienceOf(hurry bool) time.Duration {
	if hurry {
		return linger
	}
	return gather
}

// attrRoom is how many attributes of an event fit without a list of their own.
const attrRoom = 12

// begin makes the record of an event, as far as all have it in common.
func (w *witness) begin(e guard.Event) ledger.Record {
	if cap(w.attrs)-len(w.attrs) < attrRoom {
		w.attrs = make([]ledger.Attr, 0, maxBatch*attrRoom)
	}
	at := len(w.attrs)
	w.attrs = w.attrs[:at+attrRoom]
	r := ledger.Record{
		Time: e.Time, Agent: e.Scope, Verdict: ledger.Denied,
		Process: ledger.Process{PID: e.PID, PPID: e.PPID, UID: e.UID, Comm: e.Comm},
		Path:    absolute(e.Dir, e.Path), More: w.attrs[at : at : at+attrRoom],
	}
	r.More = append(r.More, ledger.Text("parent", e.Parent), ledger.Number("seq", int64(e.Seq)))
	if p := w.policy(e.Scope); p != nil {
		r.Policy = p.digest
	}
	return r
}

// policy is what an agent is under, or nil.
func (w *witness) policy(agent string) *governing {
	if w.under.agent != agent {
		p, _ := w.agents(agent)
		w.under = governed{agent, p}
	}
	return w.under.policy
}

// observe turns an event into a record, and leaves out what is no news: names
// that do not exist where the policy lets the agent look.
func (w *witness) observe(rs []ledger.Record, e guard.Event) []ledger.Record {
	if e.Dir == "" && w.dir != nil && e.Path != "" && !strings.HasPrefix(e.Path, "/") {
		e.Dir = w.dir(e.PID, relativeTo(e))
	}
	if e.Kind == guard.Full { // counted, and recorded as a budget
		if w.full != nil {
			w.full(e)
		}
		return rs
	}
	r := w.begin(e)
	for _, n := range [...]struct {
		name string
		n    uint64
	}{{"skipped", e.Skipped}, {"skipped_missing", e.SkippedMissing}} {
		if n.n > 0 {
			r.More = append(r.More, ledger.Number(n.name, int64(n.n)))
		}
	}
	if e.Cut {
		r.More = append(r.More, ledger.Flag("cut")) // the path goes on
	}
	switch e.Kind {
	case guard.Exec:
		if e.Killed && e.Errno != 0 && !e.Denied {
			slog.Error("the kernel did not kill an unlisted program; its agent is stopped", "agent", e.Scope, "path", e.Path, "error", e.Errno)
			w.runaway(e.Scope)
		}
		return append(rs, executed(r, e))
	case guard.Connect:
		return append(rs, connecting(r, e))
	case guard.Opened:
		return append(rs, opened(r, e))
	case guard.Trapped:
		r.Kind, r.Reason, r.Detail = ledger.KindKernel, "kernel.sigsys", "SIGSYS for "+e.Syscall+", which no filter allows"
		return append(rs, r)
	}
	// What is no news may still tell of others that were left out, and a path
	// that was not seen whole may lead anywhere.
	if e.Errno == syscall.ENOENT && !e.Cut && w.lookable(e.Scope, r.Path) && !ofProcess(r.Path) {
		if e.Skipped+e.SkippedMissing == 0 {
			return rs
		}
		r.Kind, r.Reason, r.Path = ledger.KindWeakening, "guard.skipped", ""
		r.Detail = fmt.Sprintf("%d absent names and %d refusals were too many to report one by one", e.SkippedMissing, e.Skipped)
		return append(rs, r)
	}
	return append(rs, refused(r, e))
}

// lookable says whether an agent's policy lets it look at a path.
func (w *witness) lookable(agent, path string) bool {
	p := w.policy(agent)
	return p != nil && visible(p.policy, path)
}

// executed records a program start that happened, or was cut short.
func executed(r ledger.Record, e guard.Event) ledger.Record {
	r.Kind, r.Verdict, r.Reason = ledger.KindExec, ledger.Allowed, policies.ReasonExec
	r.More = append(r.More, ledger.Text("file", e.File), inode(e))
	if e.Killed {
		r.Verdict, r.Reason = ledger.Denied, policies.ReasonUnexecutable
		r.Detail = "killed before its first instruction"
		if e.Errno != 0 {
			r.Detail = "NOT killed, " + e.Errno.Error() + "; the agent is stopped"
		}
	}
	if e.Denied {
		r.Verdict, r.Reason, r.Detail = ledger.Denied, policies.ReasonUnexecutable, "refused with EPERM"
	}
	return r
}

// connecting records that a connection or a datagram was begun, or refused
// before anything was sent. What becomes of one that was begun is egress's to
// decide and to record.
func connecting(r ledger.Record, e guard.Event) ledger.Record {
	r.Kind, r.Verdict, r.Reason, r.Host = ledger.KindConnect, ledger.Allowed, "net.attempt", e.Addr
	r.More = append(r.More, ledger.Text("protocol", e.Protocol), ledger.Text("syscall", e.Syscall))
	if e.Denied || e.Errno != 0 {
		r.Verdict, r.Reason = ledger.Denied, "kernel."+strings.ToLower(errnoName(e.Errno))
		r.Detail = e.Syscall + " to " + e.Addr + " refused: " + e.Errno.Error()
	}
	return r
}

// relativeTo is the descriptor that an event's path is relative to, if its
// system call has one: those whose names end in "at" take it first.
func relativeTo(e guard.Event) int32 {
	if strings.HasSuffix(strings.TrimSuffix(e.Syscall, "2"), "at") {
		return int32(e.Args[0])
	}
	return unix.AT_FDCWD
}

// opened records a file that was opened, under a policy that wants to know.
func opened(r ledger.Record, e guard.Event) ledger.Record {
	r.Kind, r.Verdict, r.Reason = ledger.KindFile, ledger.Allowed, policies.ReasonRead
	if e.Access == guard.WriteOnly || e.Access == guard.ReadWrite {
		r.Reason = policies.ReasonWrite
	}
	r.More = append(r.More, ledger.Text("access", string(e.Access)), ledger.Text("file", e.File), inode(e))
	return r
}

// inode is text: a number of 64 bits is more than some readers of JSON can hold.
func inode(e guard.Event) ledger.Attr {
	return ledger.Text("inode", strconv.FormatUint(e.Inode.Ino, 10))
}

// callKinds maps the system calls that are about programs and connections; any
// other is about a file if it names one.
var callKinds = map[string]ledger.Kind{
	"execve": ledger.KindExec, "execveat": ledger.KindExec,
	"connect": ledger.KindConnect, "bind": ledger.KindConnect, "sendto": ledger.KindConnect, "sendmsg": ledger.KindConnect, "socket": ledger.KindConnect,
}

// refused records a system call that the kernel refused.
func refused(r ledger.Record, e guard.Event) ledger.Record {
	r.Kind = ledger.KindFile
	if e.Path == "" && e.Addr == "" {
		r.Kind = ledger.KindKernel
	}
	if k, ok := callKinds[e.Syscall]; ok {
		r.Kind = k
	}
	r.Reason = "kernel." + strings.ToLower(errnoName(e.Errno))
	r.Detail = e.Syscall + " refused: " + e.Errno.Error()
	r.More = append(r.More, ledger.Text("syscall", e.Syscall))
	if e.Path2 != "" {
		r.More = append(r.More, ledger.Text("path2", absolute(e.Dir, e.Path2)))
	}
	if e.Addr != "" {
		r.Host = e.Addr
	}
	if r.Path == "" && r.Host == "" {
		r.More = append(r.More, ledger.Text("args", fmt.Sprintf("%#x", e.Args)))
	}
	return r
}

// errnoName is the symbol of the errors that the guard reports.
func errnoName(e syscall.Errno) string {
	names := map[syscall.Errno]string{
		syscall.EPERM: "EPERM", syscall.ENOENT: "ENOENT", syscall.ESRCH: "ESRCH", syscall.EACCES: "EACCES", syscall.EROFS: "EROFS",
		syscall.ECONNREFUSED: "ECONNREFUSED",
	}
	if n, ok := names[e]; ok {
		return n
	}
	return strconv.Itoa(int(e))
}

// absolute joins a path with what it was relative to, as far as that is known.
func absolute(dir, p string) string {
	if p == "" || strings.HasPrefix(p, "/") || dir == "" {
		return p
	}
	return path.Join(dir, p)
}

// visible says whether the policy lets the agent look at a path: then a name
// that does not exist there is an ordinary miss, not an attempt.
func visible(p *policies.Policy, file string) bool {
	file = path.Clean(file)
	if !strings.HasPrefix(file, "/") {
		return true // relative to a folder that is gone; the agent was inside its own view
	}
	for _, act := range []policies.Action{policies.Read, policies.Exec} {
		if p.Decide(policies.Request{Action: act, Path: file}).Verdict == policies.Allow {
			return true
		}
	}
	return false
}

// ofProcess says whether a path names a process by its number. One that is not
// there may be hidden: then it is another's, and the look at it is news.
func ofProcess(file string) bool {
	rest, ok := strings.CutPrefix(path.Clean(file), "/proc/")
	if !ok {
		return false
	}
	n, _, _ := strings.Cut(rest, "/")
	_, err := strconv.ParseUint(n, 10, 32)
	return err == nil
}

// budgetQuiet is how often a budget that is hit again and again is recorded:
// a fork bomb that lives on within its budget hits it all the time.
const budgetQuiet = time.Minute

// tally counts a budget's hits since it was last recorded.
type tally struct {
	at time.Time // of the last record
	n  int64
}

// strike counts a budget that was hit, and records it unless it did so less
// than budgetQuiet ago.
func (a *Appliance) strike(ag *agent, budget string, count int64, detail string) {
	ag.mu.Lock()
	t := ag.tallies[budget]
	t.n += count
	due := time.Since(t.at) >= budgetQuiet
	n := t.n
	if due {
		t = tally{at: time.Now()}
	}
	ag.tallies[budget] = t
	ag.mu.Unlock()
	if due {
		a.budgetRecord(ag, budget, n, detail)
	}
}

// strikesLeft records what strike has counted and not told.
func (a *Appliance) strikesLeft(ag *agent) {
	ag.mu.Lock()
	left := ag.tallies
	ag.tallies = map[string]tally{}
	ag.mu.Unlock()
	for budget, t := range left {
		if t.n > 0 {
			a.budgetRecord(ag, budget, t.n, "since the last record")
		}
	}
}

func (a *Appliance) budgetRecord(ag *agent, budget string, count int64, detail string) {
	rec := a.lifecycle(ag, ledger.Denied, "budget."+budget, detail)
	rec.Attrs = map[string]any{"count": count}
	if err := a.log.Record(context.Background(), rec); err != nil {
		a.fail(fmt.Errorf("a budget event could not be recorded: %w", err))
	}
}
