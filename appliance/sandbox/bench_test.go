package sandbox

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"
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

func against(b *testing.B, warm int) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		b.Skipf("apt-get install bubblewrap: %v", err)
	}
	bn := newBench(b)
	bn.l.warm = make(chan *shell, warm)
	var ours, theirs, until []time.Duration
	for b.Loop() {
		t := time.Now()
		c := exec.Command(bwrap, "--unshare-all", "--die-with-parent", "--ro-bind", programs.dir, "/bin", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/bin/probe", "print=x")
		if out, err := c.Output(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		theirs = append(theirs, time.Since(t))
		bn.l.refill()
		time.Sleep(2 * time.Millisecond * time.Duration(warm)) // until it waits
		t = time.Now()
		box, _ := bn.start(Spec{}, "print=x")
		until = append(until, time.Since(t))
		<-box.p.done
		ours = append(ours, time.Since(t))
		box.Wait()
	}
	for name, ds := range map[string][]time.Duration{"ours": ours, "start": until, "bwrap": theirs} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), name+"-us")
		b.ReportMetric(float64(ds[0].Microseconds()), name+"-min-us")
	}
}
