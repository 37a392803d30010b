package sandbox

import (
	"fmt"
	"io"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/appliance/guard"
)

// BenchmarkManyPrograms starts a sandbox whose policy lists a folder of 10,000
// programs: for the first time, and again.
func BenchmarkManyPrograms(b *testing.B) {
	bn := newBench(b)
	layers, err := base()
	if err != nil {
		b.Fatal(err)
	}
	var many []file
	for i := range 10_000 {
		many = append(many, file{name: fmt.Sprintf("usr/many/%d", i), data: "#!/bin/probe\n", mode: 0o755})
	}
	bl := newBlobs(b)
	if err := bl.image("many", v1.Config{Entrypoint: []string{"/bin/probe"}}, append(layers, layer(many...))...); err != nil {
		b.Fatal(err)
	}
	im, err := OpenImages(b.TempDir(), bl)
	if err != nil {
		b.Fatal(err)
	}
	if bn.image, err = im.Prepare(b.Context(), "many"); err != nil {
		b.Fatal(err)
	}
	p := policy()
	p.Process.Exec = append(p.Process.Exec, "/usr/many/")
	var first, again time.Duration
	listed := 0
	for b.Loop() {
		bn.l.known = nil
		for _, sum := range []*time.Duration{&first, &again} {
			t := time.Now()
			box, _ := bn.start(Spec{Policy: p, Guard: func(s guard.Scope) (io.Closer, error) {
				listed = len(s.Exec)
				return io.NopCloser(nil), nil
			}}, "exit=0")
			*sum += time.Since(t)
			box.Wait()
		}
	}
	b.ReportMetric(float64(first.Microseconds())/float64(b.N), "first-us")
	b.ReportMetric(float64(again.Microseconds())/float64(b.N), "again-us")
	b.ReportMetric(float64(listed), "programs")
}
