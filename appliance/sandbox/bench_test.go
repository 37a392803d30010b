package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkStartSteps reports the median of each step of a start, in
// microseconds, and of the agent's life after it.
func BenchmarkStartSteps(b *testing.B) {
	bn := newBench(b)
	took := map[string][]time.Duration{}
	var last time.Time
	bn.l.mark = func(step string) {
		now := time.Now()
		took[step] = append(took[step], now.Sub(last))
		last = now
	}
	for b.Loop() {
		last = time.Now()
		box, _ := bn.start(Spec{}, "print=x")
		<-box.p.done
		bn.l.mark("run")
		box.Wait()
		bn.l.mark("teardown")
	}
	for step, ds := range took {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), step+"-us")
		b.ReportMetric(float64(ds[0].Microseconds()), step+"-min-us")
	}
	if len(took) == 0 {
		b.Fatal(fmt.Errorf("no step was reported"))
	}
}

// BenchmarkAgainstBubblewrap starts the same program alternately in a fresh
// sandbox, with everything that a policy asks for, and in bubblewrap with
// namespaces and mounts only, and reports both from the first step to the
// program's end: medians, and the fastest of each.
func BenchmarkAgainstBubblewrap(b *testing.B) {
	for name, warm := range map[string]int{"cold": 0, "warm": 1} {
		b.Run(name, func(b *testing.B) { against(b, warm) })
	}
}

// cpu is what this process and those that it has waited for have used.
func cpu() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		unix.Getrusage(who, &r)
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

// settle lets the kernel finish with the namespaces of the last one, which it
// takes apart in the background, and a waiting launcher reach its wait.
func settle() { time.Sleep(20 * time.Millisecond) }

func against(b *testing.B, warm int) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		b.Skipf("apt-get install bubblewrap: %v", err)
	}
	bn := newBench(b)
	bn.l.warm = make(chan *shell, warm)
	var ours, theirs, until []time.Duration
	var used [2]time.Duration // processor time: theirs, ours; steadier than a clock on a busy host
	for b.Loop() {
		settle()
		t, u := time.Now(), cpu()
		c := exec.Command(bwrap, "--unshare-all", "--die-with-parent", "--ro-bind", filepath.Dir(programs.probe), "/bin", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/bin/probe", "print=x")
		if out, err := c.Output(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		theirs = append(theirs, time.Since(t))
		used[0] += cpu() - u
		u = cpu()
		bn.l.refill()
		settle()
		t = time.Now()
		box, _ := bn.start(Spec{}, "print=x")
		until = append(until, time.Since(t))
		<-box.p.done
		ours = append(ours, time.Since(t))
		box.Wait()
		used[1] += cpu() - u
	}
	b.ReportMetric(float64(used[0].Microseconds())/float64(len(theirs)), "bwrap-cpu-us")
	b.ReportMetric(float64(used[1].Microseconds())/float64(len(ours)), "ours-cpu-us")
	for name, ds := range map[string][]time.Duration{"ours": ours, "start": until, "bwrap": theirs} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), name+"-us")
		b.ReportMetric(float64(ds[0].Microseconds()), name+"-min-us")
	}
}

// BenchmarkNeighbours measures a small piece of work, on the host and in a
// sandbox, alone and beside one that misbehaves: the median and the slowest
// hundredth, in microseconds.
func BenchmarkNeighbours(b *testing.B) {
	for _, bomb := range []string{"", "forks=500", "eat=400", "create=/tmp", "fill=/workspace/big", "hold=/data/in", "flood=4000"} {
		b.Run("beside "+bomb, func(b *testing.B) { neighbours(b, bomb) })
	}
}

func neighbours(b *testing.B, bomb string) {
	bn := newBench(b)
	p := policy()
	p.Budgets.Disk, p.Budgets.CPU = 32<<20, 0.5
	box, _ := bn.start(Spec{Name: "good", Policy: p}, "sleep=600")
	if bomb != "" {
		out := &counter{}
		bad, err := bn.l.Start(b.Context(), Spec{Name: "bad", Image: bn.image, Policy: p, Args: []string{bomb, bomb, bomb, bomb, "sleep=600"}, Stdout: out, Stderr: out})
		if err != nil {
			b.Fatal(err)
		}
		defer bad.Stop(b.Context(), 0)
	}
	defer box.Stop(b.Context(), 0)
	var host, inside []time.Duration
	for b.Loop() {
		t := time.Now()
		f := filepath.Join(bn.state, "small")
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			b.Fatal(err)
		}
		os.Remove(f)
		host = append(host, time.Since(t))
		t = time.Now()
		if code, err := box.Exec(b.Context(), ExecSpec{Args: []string{"/bin/probe", "write=/workspace/f"}}); err != nil || code != 0 {
			b.Fatal(code, err)
		}
		inside = append(inside, time.Since(t))
	}
	for name, ds := range map[string][]time.Duration{"host": host, "inside": inside} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), name+"-p50-us")
		b.ReportMetric(float64(ds[len(ds)*99/100].Microseconds()), name+"-p99-us")
	}
}
