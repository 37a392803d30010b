package guard

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkPrograms tells how long each program runs, by the kernel's own
// account (as kernel.bpf_stats_enabled does), while a scope with full audit opens
// files, connects and starts programs: ns a run, and runs and ns a deed. Time that
// the host takes away is in it, so repeat it and take the least.
func BenchmarkPrograms(b *testing.B) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Skipf("the kernel does not count: %v", err)
	}
	defer stats.Close()
	dir := b.TempDir()
	chmod(b, dir)
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		b.Fatal(err)
	}
	prog := program(b, dir+"/prog", "/nowhere/marker")
	l := listenPlain(b, "127.0.0.1:0")
	go hangUp(l)
	g := load(b)
	go func() {
		for range g.Events() {
		}
	}()
	cg := cgroup(b, "")
	s := Scope{ID: "bench", CgroupID: must(CgroupID(cg)), AuditOpens: true, Connects: true, AuditENOENT: true, Readable: []string{"/"}}
	for _, f := range []string{must(os.Executable()), prog} {
		s.Exec = append(s.Exec, must(Lookup(os.Getpid(), f)))
	}
	w := must(g.Watch(s))
	defer w.Close()
	ps := g.objs.progs()
	if g.hooks != nil {
		maps.Copy(ps, g.hooks.coll.Programs)
	}
	for _, d := range []struct {
		name, at string
		n        int
	}{{"open", dir + "/file", 50000}, {"connect", l.Addr().String(), 5000}, {"exec", prog, 500}} {
		b.Run(d.name, func(b *testing.B) {
			for b.Loop() {
				before := counted(b, ps)
				if err := helper(b, cg, "timed", d.name, d.at, strconv.Itoa(d.n)).Run(); err != nil {
					b.Fatal(err)
				}
				for name, now := range counted(b, ps) {
					runs, ns := now[0]-before[name][0], now[1]-before[name][1]
					if runs*2 > float64(d.n) {
						b.ReportMetric(ns/runs, name+"-ns")
						b.ReportMetric(ns/float64(d.n), name+"-ns/deed")
					}
				}
			}
		})
	}
}

// counted are the runs of each program, and the ns that they took.
func counted(b *testing.B, ps map[string]*ebpf.Program) map[string][2]float64 {
	out := map[string][2]float64{}
	for _, name := range slices.Sorted(maps.Keys(ps)) {
		st, err := ps[name].Stats()
		if err != nil {
			b.Fatal(fmt.Errorf("%s: %w", name, err))
		}
		out[name] = [2]float64{float64(st.RunCount), float64(st.Runtime)}
	}
	return out
}
