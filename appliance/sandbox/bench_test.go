package sandbox

import (
	"fmt"
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
	}
	if len(took) == 0 {
		b.Fatal(fmt.Errorf("no step was reported"))
	}
}
