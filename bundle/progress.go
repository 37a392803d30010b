package bundle

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/clawbox/clawbox/internal/legible"
)

// Progress is told what is being done. It is safe for concurrent use.
type Progress interface {
	// Start begins a task of total bytes, -1 when that is not known.
	Start(name string, total int64) Task
}

// Task is one thing that takes a while. Add counts bytes; Done ends it.
type Task interface {
	Add(n int64)
	Done(err error)
}

// quiet is the Progress of a caller that gave none.
type quiet struct{}

func (quiet) Start(string, int64) Task { return quiet{} }
func (quiet) Add(int64)                {}
func (quiet) Done(error)               {}

func orQuiet(p Progress) Progress {
	if p == nil {
		return quiet{}
	}
	return p
}

// Reporter is a Progress that people can watch. Close ends it.
type Reporter struct {
	Progress
	out   io.Writer
	close func()
}

// Close draws the last state and leaves the terminal to others.
func (r Reporter) Close() { r.close() }

// Write prints whole lines beside the progress, without bars drawing over them,
// and without anything that is not printable.
func (r Reporter) Write(p []byte) (int, error) { return r.out.Write(p) }

// NewProgress returns bars with rate and remaining time for a terminal, and
// otherwise plain lines: one at the end of each task, and one every ten
// seconds of a long one.
func NewProgress(w io.Writer, tty bool) Reporter {
	if !tty {
		return Reporter{&plain{w: w, every: 10 * time.Second}, legible.Writer{W: w}, func() {}}
	}
	b := &bars{p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(32), mpb.WithRefreshRate(200*time.Millisecond), mpb.WithAutoRefresh())}
	return Reporter{b, legible.Writer{W: b.p}, b.close}
}

// plain writes lines.
type plain struct {
	every time.Duration

	mu sync.Mutex // guards w
	w  io.Writer
}

func (p *plain) Start(name string, total int64) Task {
	now := time.Now()
	return &plainTask{p: p, name: legible.Line(name), total: total, start: now, last: now}
}

func (p *plain) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

type plainTask struct {
	p     *plain
	name  string
	total int64

	mu          sync.Mutex // guards what follows
	n           int64
	start, last time.Time
}

func (t *plainTask) Add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
	if now := time.Now(); now.Sub(t.last) >= t.p.every {
		t.last = now
		t.p.line("%s: %s", t.name, t.state(now))
	}
}

// state is done, of how much, at what rate, and how long it will still take.
func (t *plainTask) state(now time.Time) string {
	sec := now.Sub(t.start).Seconds()
	s := Size(t.n)
	if t.total > 0 {
		s += " of " + Size(t.total)
	}
	if sec > 0.1 && t.n > 0 {
		rate := float64(t.n) / sec
		s += ", " + Size(int64(rate)) + "/s"
		if t.total > t.n {
			s += ", " + time.Duration(float64(t.total-t.n)/rate*1e9).Round(time.Second).String() + " left"
		}
	}
	return s
}

func (t *plainTask) Done(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.p.line("%s: failed after %s", t.name, Size(t.n))
		return
	}
	t.p.line("%s: done, %s", t.name, t.state(time.Now()))
}

// bars draws.
type bars struct {
	p *mpb.Progress

	mu  sync.Mutex // guards all
	all []*mpb.Bar
}

func (b *bars) Start(name string, total int64) Task {
	// mpb ends a bar that was made with a total only when it is full: a task
	// that ends early would never end. So the total is set afterwards.
	bar := b.p.AddBar(0,
		mpb.PrependDecorators(decor.Name(legible.Line(name), decor.WCSyncSpaceR)),
		mpb.AppendDecorators(
			decor.Counters(decor.SizeB1000(0), "% .1f / % .1f", decor.WCSyncSpace),
			decor.AverageSpeed(decor.SizeB1000(0), "% .1f", decor.WCSyncSpace),
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "done")))
	bar.SetTotal(max(total, 0), false)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, bar)
	return barTask{bar}
}

// close ends the bars of tasks that nobody ended, and draws a last time.
func (b *bars) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, bar := range b.all {
		bar.Abort(false)
	}
	b.p.Wait()
}

type barTask struct{ b *mpb.Bar }

func (t barTask) Add(n int64) { t.b.IncrInt64(n) }

func (t barTask) Done(err error) {
	if err != nil {
		t.b.Abort(false)
		return
	}
	t.b.SetTotal(-1, true) // the total is what was counted
}

// Size writes a number of bytes for people, in powers of ten: "1.5 GB".
func Size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for ; f >= 999.95 && i < len(units)-1; i++ {
		f /= 1000
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
