package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
	"golang.org/x/sys/unix"
)

// Env is what Run works with besides the plan.
type Env struct {
	// Trust is what the media were opened with; it becomes the host's own.
	Trust manifest.Trust
	// Load brings the release's blobs into the store, verified, and tags them
	// (bundle.Media.Load).
	Load func(context.Context, *content.Store) error
	// Verify reads all of the media and finds damage before anything is
	// touched (bundle.Media.Verify); nil leaves that to Load, which reads the
	// media only once.
	Verify func(context.Context) error
	// Systemctl runs systemctl with these arguments; nil runs the real one.
	Systemctl func(ctx context.Context, args ...string) error
	// Ready bounds the wait for the started appliance; 0 means three minutes.
	Ready time.Duration
	// Cluster speaks to the cluster once K3s runs; nil does it with the slot's
	// own program (Layout.Cluster).
	Cluster Cluster
	// Token joins a node to its server. It is a secret, so that it is neither
	// in the plan nor in the answers; "" where the node has one already.
	Token string
	// Progress, if set, hears of each step as it begins and ends.
	Progress func(Event)

	// hook is called around each step's two journal lines; tests kill here.
	hook func(step, phase string)
}

// Event is one step that began ("start"), was found done earlier ("skip") or
// ended ("done"). Detail says what was done or found.
type Event struct {
	Step   string `json:"step"`
	Title  string `json:"title"`
	What   string `json:"what"`
	Detail string `json:"detail,omitempty"`
}

// Result is the outcome of a Run that ended well.
type Result struct {
	Release  string            `json:"release"`
	Sequence int64             `json:"sequence"`
	Mode     string            `json:"mode"`    // "installed", "resumed" or "verified"
	Changed  map[string]string `json:"changed"` // step → what it did; empty after "verified": nothing to repair
	Next     string            `json:"next"`    // what to do now
}

// StepError says where an installation stopped and what is there now.
type StepError struct {
	Step, Title string
	Done        []string // steps that are finished
	Active      bool     // whether the release was activated
	Err         error
}

func (e *StepError) Error() string {
	state := "nothing is active"
	if e.Active {
		state = "the release is placed and activated, but not confirmed"
	}
	done := "nothing"
	if len(e.Done) > 0 {
		done = strings.Join(e.Done, ", ")
	}
	return fmt.Sprintf("step %q (%s) failed: %v\nfinished so far: %s; %s\ncorrect the cause and run the same command with the same media: it continues here",
		e.Step, e.Title, e.Err, done, state)
}

func (e *StepError) Unwrap() error { return e.Err }

// run is one Run at work.
type run struct {
	Plan
	env     Env
	l       Layout
	j       *journal
	h       history
	store   *content.Store // opened by the step "payload" or when first needed
	repair  bool           // the release is installed: verify and repair
	changed map[string]string
}

// Run carries out p. It touches nothing unless the machine, the answers and
// what is installed already allow it. An interrupted Run continues when it is
// called again with the same release; see the package comment.
func Run(ctx context.Context, p Plan, env Env) (Result, error) {
	r := &run{Plan: p, env: env, l: p.Answers.layout(), changed: map[string]string{}}
	if err := r.before(ctx); err != nil {
		return Result{}, err
	}
	// An operator's strict umask would hide new folders from the sandboxes'
	// users; private things get their modes by name. It is the process's own.
	defer unix.Umask(unix.Umask(0o022))
	unlock, err := r.enter()
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	defer r.j.Close()
	return r.all(ctx)
}

// before refuses whatever can be refused without touching anything.
func (r *run) before(ctx context.Context) error {
	if p, err := NewPlan(r.Facts, r.Answers, r.Release); err != nil {
		return err
	} else if p.Digest != r.Digest {
		return errors.New("the plan was changed after it was made; make it again")
	}
	if r.env.Load == nil || r.env.Trust.Empty() {
		return errors.New("installer: Env needs Load and Trust")
	}
	if err := r.canJoin(); err != nil {
		return err
	}
	h, err := replay(r.l.Journal())
	if err != nil {
		return err
	}
	if err := errors.Join(r.against(h), r.l.settled()); err != nil {
		return err
	}
	if r.env.Verify != nil {
		return r.env.Verify(ctx)
	}
	return nil
}

// against holds the plan against what is installed here, or half installed.
func (r *run) against(h history) error {
	now := r.head()
	switch {
	case h.last != nil && now.Sequence < h.last.Sequence:
		return manifest.CheckSequence(h.last.Sequence, now.Sequence)
	case h.last != nil && now.Sequence > h.last.Sequence:
		return fmt.Errorf("got %s, installed is %s; wanted the installed release; 'clawbox upgrade' brings a later one", now, *h.last)
	case h.last != nil && now.Digest != h.last.Digest:
		return fmt.Errorf("got %s, installed is %s: one sequence number, two contents; wanted the installed release; ask the publisher which one is right", now, *h.last)
	case h.last != nil && now.Plan != h.last.Plan:
		return fmt.Errorf("%s is installed with other answers; wanted the same ones (%s); to change settings edit %s and restart the service", now, r.l.Answers(), r.l.Config())
	case h.last == nil && h.open != nil && now.Digest != h.open.Digest:
		return fmt.Errorf("got %s, but the installation of %s is under way here; wanted the same media; finish that first, or remove %s, %s and %s to start over", now, *h.open, r.l.State(), r.l.Opt(), r.l.Etc())
	}
	return nil
}

func (r *run) head() head {
	return head{r.Release.Name, r.Release.Version, r.Release.Sequence, r.Release.Digest, r.Digest}
}

// enter makes the two folders that lock and journal need, and looks at the
// history again, now that nobody else can change it.
func (r *run) enter() (unlock func(), err error) {
	for _, d := range r.l.dirs() {
		if d.path != r.l.State() && d.path != r.l.Install() {
			continue
		}
		if _, err := ensureDir(d.path, d.mode); err != nil {
			return nil, fmt.Errorf("installer: %w", err)
		}
	}
	unlock, err = lock(r.l.Lock())
	if err != nil {
		return nil, err
	}
	if r.h, err = replay(r.l.Journal()); err == nil {
		err = r.against(r.h)
	}
	if err == nil {
		r.j, err = openJournal(r.l.Journal(), r.h.size)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	r.repair = r.h.last != nil
	return unlock, nil
}

// all runs the steps in order and commits.
func (r *run) all(ctx context.Context) (Result, error) {
	now := r.head()
	res := Result{Release: r.Release.String(), Sequence: r.Release.Sequence, Mode: "installed", Changed: r.changed, Next: r.next()}
	switch {
	case r.repair:
		res.Mode = "verified"
	case r.h.open != nil:
		res.Mode = "resumed"
	}
	if r.h.open != nil && *r.h.open != now {
		r.h.done = map[string]bool{} // other answers: every step again
	}
	if err := r.j.append(line{Event: "begin", Head: &now}); err != nil {
		return Result{}, err
	}
	if err := r.sweep(); err != nil {
		return Result{}, err
	}
	if err := r.keepAnswers(); err != nil {
		return Result{}, err
	}
	for _, s := range steps {
		if s.only != nil && !s.only(r.Answers) {
			continue
		}
		if err := r.step(ctx, s); err != nil {
			return Result{}, r.failed(s, err)
		}
	}
	return res, r.j.append(line{Event: "commit", Head: &now})
}

// keepAnswers stores what this run goes by, before the first step, so that
// whoever resumes it need not remember.
func (r *run) keepAnswers() error {
	a, err := r.Answers.Encode()
	if err == nil {
		_, err = ensureFile(r.l.Answers(), a, 0o600)
	}
	if err == nil {
		err = r.l.keepRelease(r.Release)
	}
	return err
}

// step runs s between its two lines, unless it is done already.
func (r *run) step(ctx context.Context, s step) error {
	if r.h.done[s.id] {
		r.tell(s, "skip", "done earlier")
		return nil
	}
	r.at(s, "before")
	r.tell(s, "start", "")
	if err := r.j.append(line{Event: "start", Step: s.id}); err != nil {
		return err
	}
	r.at(s, "started")
	if err := ctx.Err(); err != nil {
		return err
	}
	did, err := s.run(r, ctx)
	if err != nil {
		return err
	}
	r.at(s, "acted")
	if err := r.j.append(line{Event: "done", Step: s.id, Text: did}); err != nil {
		return err
	}
	r.at(s, "done")
	r.h.done[s.id] = true
	if did != "" {
		r.changed[s.id] = did
	}
	r.tell(s, "done", did)
	return nil
}

func (r *run) at(s step, phase string) {
	if r.env.hook != nil {
		r.env.hook(s.id, phase)
	}
}

func (r *run) tell(s step, what, detail string) {
	if r.env.Progress != nil {
		r.env.Progress(Event{s.id, s.title, what, detail})
	}
}

// failed records and explains. That the journal may be what failed must not
// hide the cause.
func (r *run) failed(s step, err error) error {
	if r.spoiled(err) {
		kept, uerr := r.undo()
		return errors.Join(&SpoiledError{Blobs: kept, Store: r.l.Store(), Err: err}, uerr)
	}
	_ = r.j.append(line{Event: "fail", Step: s.id, Text: err.Error()})
	e := &StepError{Step: s.id, Title: s.title, Err: err}
	for _, t := range steps {
		if r.h.done[t.id] {
			e.Done = append(e.Done, t.id)
		}
	}
	_, lerr := os.Lstat(r.l.Current())
	e.Active = lerr == nil
	return e
}

func (r *run) next() string {
	if isCluster(r.Answers) {
		return nextOfCluster(r.Answers)
	}
	if r.Answers.Start == "systemd" {
		return "the appliance runs; look at it with: clawbox status"
	}
	return "start the appliance with: " + serveCommand(r.Answers)
}

// sweep removes what a killed run left half-written in the installation's own
// folders; their names are durable.WriteFile's. Slots sweep themselves.
func (r *run) sweep() error {
	for _, d := range []string{r.l.Etc(), r.l.Keys(), r.l.Receipts(), r.l.Install(), r.l.Opt(), filepath.Dir(r.l.Unit())} {
		left, err := filepath.Glob(filepath.Join(d, ".*.tmp-*"))
		if err != nil {
			return err
		}
		for _, p := range left {
			if d == filepath.Dir(r.l.Unit()) && !strings.HasPrefix(filepath.Base(p), ".clawbox.service.tmp-") {
				continue
			}
			if err := durable.Remove(p); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return nil
}
