package sandbox

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkDisk measures what a fresh agent's disk costs its first start, its
// next ones, and the host, for the sizes of the policies that ship.
func BenchmarkDisk(b *testing.B) {
	for _, s := range []size{{1 << 30, 100_000}, {10 << 30, 1_000_000}, {20 << 30, 2_000_000}} {
		b.Run(fmt.Sprintf("%d GiB", s.bytes>>30), func(b *testing.B) {
			bn := newBench(b)
			p := policy()
			var first, next time.Duration
			var took int64
			for b.Loop() {
				p.Budgets.Disk, p.Budgets.Inodes = s.bytes, int(s.inodes)
				for _, sum := range []*time.Duration{&first, &next} {
					t := time.Now()
					box, _ := bn.start(Spec{Policy: p}, "write=/workspace/f")
					*sum += time.Since(t)
					box.Wait()
				}
				var err error
				if took, err = allocated(disk{bn.l.agentDir("agent")}.image()); err != nil {
					b.Fatal(err)
				}
				if err := bn.l.Remove("agent"); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(first.Microseconds())/float64(b.N), "first-us")
			b.ReportMetric(float64(next.Microseconds())/float64(b.N), "next-us")
			b.ReportMetric(float64(took), "host-bytes")
		})
	}
}
