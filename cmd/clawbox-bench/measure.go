package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/policies"
)

// measurement is one line of work; it may give several rows.
type measurement struct {
	key  string
	take func(ctx context.Context, l *lab, n int) ([]row, error)
}

// row is one line of the table. A cell without samples was not measured.
type row struct {
	name   string
	cells  map[string]samples
	ratios map[string]float64 // to the host, median over the rounds
	target string             // "" none
	got    string             // what is held against the target
	met    bool
	tail   float64 // the second quantile shown; 0: 0.9
}

var measurements = []measurement{
	{"cold", coldStart},
	{"exec", probed("exec of a static program", "exec", 200, 25*time.Microsecond)},
	{"open", probed("open + read + close", "open", 200, 400*time.Nanosecond)},
	{"connect", probed("connect on loopback", "connect", 1000, time.Microsecond)},
	{"build", workload("go build of a small program", "build", "2")},
	{"git", workload("git: 200 files, two commits", "git", "1")},
	{"many", many},
	{"egress", egressRequests},
	{"reload", reload},
	{"unlisted", unlisted},
}

func names() string {
	var out []string
	for _, m := range measurements {
		out = append(out, m.key)
	}
	return strings.Join(out, ", ")
}

// turns runs f in every place, n rounds, beginning with another place each
// round.
func turns(ctx context.Context, l *lab, n int, f func(name string, p place) (samples, error)) (rounds, error) {
	r := rounds{}
	for i := range n {
		for k := range l.order {
			name := l.order[(i+k)%len(l.order)]
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			s, err := f(name, l.places[name])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r.add(name, s)
		}
	}
	return r, nil
}

// newRow fills a row from rounds.
func newRow(name string, r rounds) row {
	out := row{name: name, cells: map[string]samples{}, ratios: map[string]float64{}}
	for p := range r {
		out.cells[p] = r.all(p)
		out.ratios[p] = r.ratio(p, host)
	}
	return out
}

// probe runs the probe in a place and reads its samples.
func probe(ctx context.Context, p place, argv ...string) (samples, error) {
	return sampled(ctx, p, job{argv: append([]string{"/bin/probe"}, argv...)})
}

func sampled(ctx context.Context, p place, j job) (samples, error) {
	var out bytes.Buffer
	j.out = &out
	if err := do(ctx, p, j); err != nil {
		return nil, err
	}
	return readSamples(out.Bytes())
}

// withAlone runs the probe in every place, and in the same second as the fully
// audited one in a sandbox without the guard.
func withAlone(ctx context.Context, l *lab, n int, argv ...string) (r, alone rounds, err error) {
	argv, alone = append([]string{"/bin/probe"}, argv...), rounds{}
	r, err = turns(ctx, l, n, func(place string, p place) (samples, error) {
		if place == audited {
			s, err := sampled(ctx, p, job{argv: argv, alone: true})
			if err != nil {
				return nil, err
			}
			alone.add(audited, s)
		}
		return sampled(ctx, p, job{argv: argv})
	})
	alone[host] = r[host]
	return r, alone, err
}

// withoutGuard is the row of what withAlone took without the guard.
func withoutGuard(name string, alone rounds) row {
	out := newRow(name+", without the guard", alone)
	delete(out.cells, host) // it stands in the row above
	return out
}

// probed compares one system call's cost, with a bound on the difference.
func probed(name, mode string, count int, bound time.Duration) func(context.Context, *lab, int) ([]row, error) {
	return func(ctx context.Context, l *lab, n int) ([]row, error) {
		r, alone, err := withAlone(ctx, l, n, mode, strconv.Itoa(count))
		if err != nil {
			return nil, err
		}
		out, more := newRow(name, r), r.more(audited, host)
		out.target, out.got, out.met = "+ ≤ "+show(bound), signed(more), more <= bound
		return []row{out, withoutGuard(name, alone)}, nil
	}
}

// workload compares whole programs: at most 5 % slower.
func workload(name, mode, count string) func(context.Context, *lab, int) ([]row, error) {
	return func(ctx context.Context, l *lab, n int) ([]row, error) {
		if mode == "git" {
			if _, err := os.Stat(l.root + "/usr/bin/git"); err != nil {
				return nil, nil // the report says that it is not installed
			}
		}
		r, alone, err := withAlone(ctx, l, n, mode, count)
		if err != nil {
			return nil, err
		}
		out, q := newRow(name, r), r.ratio(audited, host)
		out.target, out.got, out.met = "≤ 5 % slower", fmt.Sprintf("%+.1f %%", 100*(q-1)), q <= 1.05
		return []row{out, withoutGuard(name, alone)}, nil
	}
}

// stamp notes when the first byte arrives.
type stamp struct {
	once sync.Once
	at   time.Time
	seen chan struct{}
}

func newStamp() *stamp { return &stamp{seen: make(chan struct{})} }

func (s *stamp) Write(b []byte) (int, error) {
	s.once.Do(func() { s.at = time.Now(); close(s.seen) })
	return len(b), nil
}

// coldStart times from the request to the first byte that a static program
// in a new sandbox has written. clawbox has the guard and the way out attached,
// and the start on the ledger.
func coldStart(ctx context.Context, l *lab, n int) ([]row, error) {
	r, err := turns(ctx, l, n, func(_ string, p place) (samples, error) { return l.starts(ctx, p, job{open: true}) })
	if err != nil {
		return nil, err
	}
	rows := []row{newRow("cold start to the first byte", r)}
	if _, ok := r[bwrap]; ok {
		d := r.more(audited, bwrap)
		rows[0].target, rows[0].got, rows[0].met = "≤ bubblewrap", signed(d), d <= 0
	}
	for _, part := range []struct {
		name, place string
		job         job
	}{
		{"an agent's very first start", audited, job{open: true, first: true}},
		{"cold start, no launcher waiting", audited, job{open: true, fresh: true}},
		{"the same without the way out", clawbox, job{fresh: true}},
		{"the same without guard and way out", clawbox, job{fresh: true, alone: true}},
	} {
		s := rounds{}
		for i := range n {
			one, err := l.starts(ctx, l.places[part.place], part.job)
			if err != nil {
				return nil, err
			}
			s.add(part.place, one)
			s.add(host, r[host][i])
			if p, ok := l.places[bwrap]; ok { // again, within the same second
				if one, err = l.starts(ctx, p, job{}); err != nil {
					return nil, err
				}
				s.add(bwrap, one)
			}
		}
		out := newRow(part.name, s)
		delete(out.cells, host) // measured once, above
		rows = append(rows, out)
	}
	return rows, nil
}

// starts takes five samples, each on a host at rest.
func (l *lab) starts(ctx context.Context, p place, j job) (s samples, err error) {
	for i := range 5 {
		if j.first {
			j.slot = 1000 + i
		}
		l.settle()
		w, start := newStamp(), time.Now()
		j.argv, j.out = []string{"/bin/busybox", "echo", "x"}, w
		if err := do(ctx, p, j); err != nil {
			return nil, err
		}
		s = append(s, w.at.Sub(start))
		if j.first {
			if err := l.local.Remove(name(j)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// many starts 1, 10 and 100 sandboxes at once and times until all of them run.
func many(ctx context.Context, l *lab, n int) ([]row, error) {
	var rows []row
	each := map[int]time.Duration{}
	for _, count := range []int{1, 10, 100} {
		r, err := turns(ctx, l, max(n/3, 1), func(_ string, p place) (samples, error) {
			d, err := crowd(ctx, p, count)
			return samples{d}, err
		})
		if err != nil {
			return nil, err
		}
		out := newRow(fmt.Sprintf("%d at once, until all run", count), r)
		each[count] = out.cells[audited].median() / time.Duration(count)
		if count == 100 {
			q := float64(each[100]) / float64(each[10])
			out.target, out.got, out.met = "linear: ≤ 1.25 × the cost of each of 10", fmt.Sprintf("%.2f ×", q), q <= 1.25
		}
		rows = append(rows, out)
	}
	return rows, nil
}

func crowd(ctx context.Context, p place, count int) (d time.Duration, err error) {
	ws, all, errs := make([]*stamp, count), make([]running, count), make([]error, count)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range count {
		ws[i] = newStamp()
		wg.Go(func() {
			all[i], errs[i] = p.start(ctx, job{argv: []string{"/bin/probe", "stay", "0"}, out: ws[i], slot: i, open: true})
			if errs[i] == nil {
				errs[i] = first(ctx, ws[i])
			}
		})
	}
	wg.Wait()
	for _, w := range ws {
		d = max(d, w.at.Sub(start))
	}
	for _, r := range all {
		if r != nil {
			wg.Go(func() { _ = r.stop() })
		}
	}
	wg.Wait()
	return d, firstError(errs)
}

func first(ctx context.Context, w *stamp) error {
	select {
	case <-w.seen:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Minute):
		return fmt.Errorf("nothing came from it for two minutes")
	}
}

func firstError(errs []error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}

// ways are the places of egressRequests: the last has its ledger in memory.
var ways = []struct {
	name, place string
	memory      bool
}{{host, host, false}, {audited, audited, false}, {inMemory, audited, true}}

const inMemory = "ledger in memory"

// egressRequests compares the host's own connections with those through
// steering, policy, two records and a second connection. What of that no way out
// can do without stands below: a second connection, and a write that lasts.
func egressRequests(ctx context.Context, l *lab, n int) ([]row, error) {
	dials, gets := rounds{}, rounds{}
	var relayed, durable samples
	for range n {
		for _, w := range ways {
			addr, url := "192.0.2.1:7000", "http://bench.example/"
			if w.place == host {
				addr, url = l.echo.Addr().String(), "http://"+l.web.Addr().String()+"/"
			}
			for _, k := range []struct {
				to   rounds
				argv []string
			}{{dials, []string{"/bin/probe", "dial", "200", addr}}, {gets, []string{"/bin/probe", "http", "100", url}}} {
				s, err := sampled(ctx, l.places[w.place], job{argv: k.argv, open: true, memory: w.memory})
				if err != nil {
					return nil, fmt.Errorf("%s: %w", w.name, err)
				}
				k.to.add(w.name, s)
			}
		}
		s, err := probe(ctx, l.places[host], "dial", "200", l.relay.Addr().String())
		if err != nil {
			return nil, err
		}
		relayed = append(relayed, s...)
		if s, err = durableWrites(l.dir, 200); err != nil {
			return nil, err
		}
		durable = append(durable, s...)
	}
	rows := []row{egressRow("new connection, one byte there and back", dials), egressRow("HTTP request of 1 KiB by name, new connection", gets)}
	for i, r := range []rounds{dials, gets} {
		without := r.all(inMemory)
		rows = append(rows, row{name: rows[i].name + ", ledger in memory", cells: map[string]samples{audited: without}, tail: 0.99})
	}
	rows = append(rows,
		row{name: "new connection through a relay that only copies", cells: map[string]samples{host: relayed}, tail: 0.99},
		row{name: "1 KiB written and flushed to the ledger's disk", cells: map[string]samples{host: durable}, tail: 0.99})
	d := dials.all(audited).median()
	rows[0].target, rows[0].got, rows[0].met = "≤ 220 µs", show(d), d <= 220*time.Microsecond
	return rows, nil
}

// durableWrites times writes within a file as long as it will be, each flushed:
// the least that a record takes to be one that a power cut leaves.
func durableWrites(dir string, n int) (out samples, err error) {
	const size = 1 << 10
	f, err := os.CreateTemp(dir, "durable-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err = f.Write(make([]byte, n*size)); err == nil {
		err = f.Sync()
	}
	for i := 0; i < n && err == nil; i++ {
		start := time.Now()
		if _, err = f.WriteAt(bytes.Repeat([]byte{byte(i)}, size), int64(i)*size); err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		out = append(out, time.Since(start))
	}
	return out, err
}

func egressRow(name string, r rounds) row {
	out := newRow(name, rounds{host: r[host], audited: r[audited]})
	out.tail = 0.99
	return out
}

// forbidden is the rule of policyText that a reload takes away.
const forbidden = "- {cidr: 192.0.2.0/24, ports: [7000]}"

// reload times from the new policy's text to the end of the connections that
// it no longer allows, fifty of them, as their server sees it.
func reload(ctx context.Context, l *lab, n int) ([]row, error) {
	old := l.policy.Load()
	var force, closed samples
	for range n {
		f, c, err := reloadOnce(ctx, l)
		l.policy.Store(old)
		if err != nil {
			return nil, err
		}
		force, closed = append(force, f), append(closed, c)
	}
	rows := []row{
		newRow("hot reload until every connection is judged anew", rounds{audited: {force}}),
		newRow("hot reload until 50 forbidden ones are closed", rounds{audited: {closed}}),
	}
	d := closed.median()
	rows[1].target, rows[1].got, rows[1].met = "≤ 20 ms", show(d), d <= 20*time.Millisecond
	return rows, nil
}

func reloadOnce(ctx context.Context, l *lab) (force, closed time.Duration, err error) {
	w := newStamp()
	r, err := l.places[audited].start(ctx, job{argv: []string{"/bin/probe", "keep", "50", "192.0.2.1:7000"}, out: w, open: true})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = r.stop() }()
	if err := first(ctx, w); err != nil {
		return 0, 0, err
	}
	text := strings.Replace(fmt.Sprintf(policyText, l.guard.Tier()), forbidden, "", 1)
	start := time.Now()
	p, err := policies.Parse("bench.yaml", []byte(text))
	if err != nil {
		return 0, 0, err
	}
	l.policy.Store(p)
	l.proxy.Recheck("bench0")
	force = time.Since(start)
	for l.open.Load() > 0 {
		if time.Since(start) > time.Minute {
			return 0, 0, fmt.Errorf("%d connections were still open a minute after the reload", l.open.Load())
		}
		time.Sleep(50 * time.Microsecond)
	}
	return force, time.Since(start), r.wait()
}

// unlisted starts a program that is not on the list: in a sandbox, where
// Landlock stands before the guard, and with the guard alone.
func unlisted(ctx context.Context, l *lab, n int) ([]row, error) {
	count := 100 * n
	rows := []row{{name: "unlisted exec in the sandbox"}, {name: "unlisted exec, the guard alone"}}
	for i, p := range []place{l.places[audited], guarded{l.boxes, l.root}} {
		var out bytes.Buffer
		if err := do(ctx, p, job{argv: []string{"/bin/probe", "violate", strconv.Itoa(count), "/unlisted/busybox", "true"}, out: &out}); err != nil {
			return nil, err
		}
		var ran, killed, refused int
		if _, err := fmt.Sscan(out.String(), &ran, &killed, &refused); err != nil {
			return nil, fmt.Errorf("got %q from the probe: %w", out.String(), err)
		}
		r := &rows[i]
		r.target, r.got = fmt.Sprintf("stopped %d of %d", count, count), fmt.Sprintf("%d ran, %d killed, %d refused", ran, killed, refused)
		r.met = ran == 0 && killed+refused == count
	}
	return rows, nil
}
