package appliance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
	"golang.org/x/sys/unix"
)

// BenchmarkWitness tells what an opened file takes from the kernel's ring to the
// disk, in CPU time of this process, which is guard's and ledger's service at once.
// The files are opened by another, as fast as it can or paced as a build does.
func BenchmarkWitness(b *testing.B) {
	for _, pace := range []string{"0", "0.0001"} {
		b.Run("pause "+pace, func(b *testing.B) { benchWitness(b, pace) })
	}
}

func benchWitness(b *testing.B, pace string) {
	a := bare(b)
	g, err := guard.Load()
	must(b, err)
	if g.Tier() == guard.TierNone {
		b.Skipf("the guard does not work here: %s", g.Why())
	}
	w := &witness{g: g, rec: remote(b, a), fail: func(err error) { b.Error(err) }}
	w.agents = func(string) (*governing, bool) { return a.agents["ada"].pol.Load(), true }
	n := 0
	w.spent = func(rs []ledger.Record) { weigh(rs); n += len(rs) }
	done := make(chan struct{})
	go func() { defer close(done); w.run() }()
	cg := watchOpens(b, g)
	from, start := cpuTime(b), time.Now()
	for b.Loop() {
		must(b, opener(b, cg, pace).Run())
	}
	ran := time.Since(start)
	must(b, g.Close())
	<-done
	b.ReportMetric(float64(cpuTime(b)-from)/float64(n), "cpu-ns/record")
	b.ReportMetric(float64(n)/ran.Seconds(), "records/s")
}

// remote is a ledger behind a connection.
func remote(b *testing.B, a *Appliance) *remoteLog {
	key, err := ledgerKey(filepath.Join(a.cfg.Paths.Keys, "ledger.key"))
	must(b, err)
	c := ledgerConfig{a.cfg.Paths.Ledger, key}
	must(b, a.createLedger(c))
	log, err := openLog(c)
	must(b, err)
	ls := &ledgerService{log: log, agents: map[string]bool{"ada": true}}
	ours, theirs, err := service.Pair()
	must(b, err)
	as := &writer{"guard", writers["guard"]}
	_, err = service.NewConn(ours, func(ctx context.Context, r *service.Request) (any, error) { return ls.append(ctx, r, as) })
	must(b, err)
	l, err := dialLedger(theirs)
	must(b, err)
	b.Cleanup(func() { l.Close(); must(b, log.Close()) })
	return l
}

// watchOpens makes a scope in which files may be opened by perl.
func watchOpens(b *testing.B, g *guard.Guard) *os.File {
	top, err := guard.Cgroup2Dir()
	must(b, err)
	dir := filepath.Join(top, fmt.Sprintf("clawbox-test-%d", os.Getpid()))
	must(b, os.Mkdir(dir, 0o755))
	b.Cleanup(func() { os.Remove(dir) })
	id, err := guard.CgroupID(dir)
	must(b, err)
	s := guard.Scope{ID: "ada", CgroupID: id, Cgroup: dir, AuditOpens: true, Connects: true, AuditENOENT: true, Readable: []string{"/"}}
	in, err := guard.Lookup(os.Getpid(), "/usr/bin/perl")
	if err != nil {
		b.Skipf("needs perl, to open files: %v", err)
	}
	s.Exec = []guard.Inode{in}
	_, err = g.Watch(s)
	must(b, err)
	f, err := os.Open(dir)
	must(b, err)
	b.Cleanup(func() { f.Close() })
	return f
}

// opener opens 20,000 files, with a pause in seconds after each ten.
func opener(b *testing.B, cg *os.File, pause string) *exec.Cmd {
	c := exec.Command("/usr/bin/perl", "-e", `for $i (1..20000) { open(F, "<", "/etc/hostname"); close(F); select(undef, undef, undef, `+pause+`) if `+pause+` && $i % 10 == 0 }`)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	c.Stderr = os.Stderr
	return c
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
