package guard

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the guard costs the host and the agents: go test -bench . -run '^$'.
// "free" is without it, "loaded" with no scope, "outside" while a scope is
// watched that the process is not in, "inside" in the scope, "audited" in one
// that reports opened files, "beside" while there is such a scope.

// works are the loops that are timed; refused and missing fail on purpose.
var works = map[string]func(dir string) error{
	"getppid": func(string) error { unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); return nil },
	"read":    readFile,
	"missing": func(dir string) error { return failsWith(dir+"/missing", unix.ENOENT) },
	"refused": func(dir string) error { return failsWith(dir+"/secret", unix.EACCES) },
	"exec":    func(string) error { return exec.Command("/bin/true").Run() },
}

func readFile(dir string) error {
	fd, err := unix.Open(dir+"/file", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 64))
	return err
}

func failsWith(name string, want error) error {
	if _, err := unix.Open(name, unix.O_RDONLY, 0); err != want {
		return fmt.Errorf("open %s: got %v, want %v", name, err, want)
	}
	return nil
}

// repeat measures CPU time, which neighbours on a busy machine disturb less.
func repeat(work, dir string, n int) (time.Duration, error) {
	start := cpu()
	for range n {
		if err := works[work](dir); err != nil {
			return 0, err
		}
	}
	return cpu() - start, nil
}

// cpu is what this process and its children have used.
func cpu() time.Duration { return cpuOf(unix.RUSAGE_SELF) + cpuOf(unix.RUSAGE_CHILDREN) }

func cpuOf(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchHelper is repeat in another process, as nobody.
func benchHelper(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if err := unix.Setuid(65534); err != nil {
		return err
	}
	d, err := repeat(args[0], args[1], n)
	fmt.Print(int64(d))
	return err
}

func BenchmarkCost(b *testing.B) {
	dir := b.TempDir()
	chmod(b, dir)
	for name, mode := range map[string]os.FileMode{"/file": 0o644, "/secret": 0o600} {
		if err := os.WriteFile(dir+name, []byte("x"), mode); err != nil {
			b.Fatal(err)
		}
	}
	inside, outside := cgroup(b, ""), cgroup(b, "")
	all := func(b *testing.B, cg string) {
		for work := range works {
			b.Run(work, func(b *testing.B) {
				out, err := helper(b, cg, "bench", work, dir, strconv.Itoa(b.N)).Output()
				if err != nil {
					b.Fatal(err)
				}
				ns, err := strconv.ParseInt(string(out), 10, 64)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(ns)/float64(b.N), "cpu-ns/op")
			})
		}
	}
	b.Run("free", func(b *testing.B) { all(b, outside) })
	g := load(b)
	follow(g)
	b.Run("loaded", func(b *testing.B) { all(b, outside) })
	watch(b, g, inside, "/bin/true")
	b.Run("outside", func(b *testing.B) { all(b, outside) })
	b.Run("inside", func(b *testing.B) { all(b, inside) })
	audited := cgroup(b, "")
	s := Scope{ID: "audited", CgroupID: must(CgroupID(audited)), AuditOpens: true}
	for _, f := range []string{"/bin/true", must(os.Executable())} {
		s.Exec = append(s.Exec, must(Lookup(os.Getpid(), f)))
	}
	w, err := g.Watch(s)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	b.Run("audited", func(b *testing.B) { all(b, audited) })
	b.Run("beside", func(b *testing.B) { all(b, outside) })
	b.Logf("lost %d", g.Lost())
}

// BenchmarkAudit compares the same work without a watched scope, beside one and
// inside one with full audit, in turn, and reports medians of CPU time per piece
// of work. "added" is what audit costs: exec 25 µs, open 0.4 µs and connect 1 µs
// are the goals.
func BenchmarkAudit(b *testing.B) {
	dir := b.TempDir()
	chmod(b, dir)
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		b.Fatal(err)
	}
	prog := program(b, dir+"/prog", "/nowhere/marker")
	l := listenPlain(b, "127.0.0.1:0")
	go hangUp(l)
	for _, w := range []struct {
		name, at string
		n        int
	}{{"open", dir + "/file", 20000}, {"connect", l.Addr().String(), 2000}, {"exec", prog, 200}} {
		b.Run(w.name, func(b *testing.B) { benchAudit(b, w.name, w.at, w.n) })
	}
}

func benchAudit(b *testing.B, name, at string, n int) {
	g := load(b)
	go func() {
		for range g.Events() {
		}
	}()
	inside, outside := cgroup(b, ""), cgroup(b, "")
	s := Scope{ID: "bench", CgroupID: must(CgroupID(inside)), AuditOpens: true, Connects: true, AuditENOENT: true, Readable: []string{"/"}}
	for _, f := range []string{must(os.Executable()), "/bin/true"} {
		s.Exec = append(s.Exec, must(Lookup(os.Getpid(), f)))
	}
	if name == "exec" {
		s.Exec = append(s.Exec, must(Lookup(os.Getpid(), at)))
	}
	var ns [3][]float64
	round := func(i int, cg string) {
		out, err := helper(b, cg, "timed", name, at, strconv.Itoa(n)).Output()
		if err != nil {
			b.Fatal(err)
		}
		ns[i] = append(ns[i], must(strconv.ParseFloat(string(out), 64)))
	}
	for b.Loop() {
		round(0, outside)
		w := must(g.Watch(s))
		round(1, outside)
		round(2, inside)
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	var mid [3]float64
	for i, name := range []string{"free-ns", "beside-ns", "inside-ns"} {
		slices.Sort(ns[i])
		mid[i] = ns[i][len(ns[i])/2]
		b.ReportMetric(mid[i], name)
	}
	b.ReportMetric(mid[2]-mid[0], "added-ns")
	if g.Lost() > 0 {
		b.Errorf("lost %d", g.Lost())
	}
}

// timed does one sort of work n times and prints the CPU time of a piece.
func timed(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	one, at := deeds[args[0]], args[1]
	start := cpu()
	for range n {
		if err := one(at); err != nil {
			return err
		}
	}
	fmt.Print(float64(cpu()-start) / float64(n))
	return nil
}

// BenchmarkExec starts the smallest program in turn outside and inside a scope,
// and reports the medians of the wall time from fork to reaped.
func BenchmarkExec(b *testing.B) {
	g := load(b)
	follow(g)
	cgs := []string{cgroup(b, ""), cgroup(b, "")}
	f, err := place(probe(missingName, unix.O_RDONLY))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	s := Scope{ID: "bench", CgroupID: must(CgroupID(cgs[1])), Exec: []Inode{must(inodeOf(int(f.Fd()), "/proc/self/mountinfo"))}, NoRefusals: true}
	w, err := g.Watch(s)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	var ds [2][]time.Duration
	for b.Loop() {
		for i, cg := range cgs {
			start := time.Now()
			if st, _, err := runIn(cg, f); err != nil || st.ExitStatus() != probeStatus {
				b.Fatal(st, err)
			}
			ds[i] = append(ds[i], time.Since(start))
		}
	}
	for i, name := range []string{"outside-ns", "inside-ns"} {
		slices.Sort(ds[i])
		b.ReportMetric(float64(ds[i][len(ds[i])/2]), name)
	}
}

// BenchmarkOpens lets four threads open files without a pause, and tells what
// an event costs this side and how fast they come. A run is cut short when the
// ring overflows, which the kill shows.
func BenchmarkOpens(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		b.Fatal(err)
	}
	b.Chdir(dir)
	b.Run("absolute", func(b *testing.B) { benchOpens(b, dir+"/file") })
	b.Run("relative", func(b *testing.B) { benchOpens(b, "file") })
}

func benchOpens(b *testing.B, name string) {
	g := load(b)
	n, left := 0, make(chan struct{})
	go func() {
		for range g.Events() {
			n++
		}
		close(left)
	}()
	cg := cgroup(b, "")
	audit(b, g, cg)
	before, start := cpuOf(unix.RUSAGE_SELF), time.Now()
	held, err := loop(b, cg, name, b.N)
	ran := time.Since(start)
	if err := g.Close(); err != nil {
		b.Fatal(err)
	}
	<-left
	b.ReportMetric(float64(cpuOf(unix.RUSAGE_SELF)-before)/float64(n), "cpu-ns/event")
	b.ReportMetric(float64(held)/ran.Seconds(), "opens/s")
	b.Logf("%d opens, %d events, %d lost, %v", held, n, g.Lost(), err)
}
