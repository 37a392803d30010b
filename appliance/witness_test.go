package appliance

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/guard"
)

// BenchmarkWitness tells what an opened file takes from the kernel's ring to the
// disk, in CPU time of the two services that see to it. The files are opened by
// another process, as fast as it can or paced as a build does.
func BenchmarkWitness(b *testing.B) {
	for _, pace := range []string{"0", "0.0001"} {
		b.Run("pause "+pace, func(b *testing.B) { benchWitness(b, pace) })
	}
}

func benchWitness(b *testing.B, pace string) {
	a := served(b)
	a.cfg.Paths.Run = b.TempDir()
	must(b, open(a.cfg.Paths.Pin()))
	b.Cleanup(func() { must(b, guard.RemovePins(a.cfg.Paths.Pin())) })
	must(b, a.startGuard())
	b.Cleanup(a.dismissAll)
	g, ctx := a.part("guard"), context.Background()
	info := a.agents["ada"].info()
	info.Policy, info.Source = "ada.yaml", []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: ada}\naudit: {files: all}\n")
	must(b, g.call(ctx, callAgent, info, nil))
	s, cg := opening(b)
	must(b, g.call(ctx, callWatch, watching{Scope: s}, nil))
	parts, before := []string{"guard", "ledger"}, map[string]time.Duration{}
	for _, role := range parts {
		before[role] = cpuTime(b, a.part(role).process().PID)
	}
	first, start := a.log.Head().Size, time.Now()
	for b.Loop() {
		must(b, opener(b, cg, pace).Run())
	}
	ran := time.Since(start)
	must(b, g.call(ctx, callUnwatch, ref{"ada"}, nil)) // when all is on the record
	n := float64(a.log.Head().Size - first)
	for _, role := range parts {
		b.ReportMetric(float64(cpuTime(b, a.part(role).process().PID)-before[role])/n, role+"-cpu-ns/record")
	}
	b.ReportMetric(n/ran.Seconds(), "records/s")
}

// opening makes a scope in which files may be opened by perl.
func opening(b *testing.B) (guard.Scope, *os.File) {
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
	f, err := os.Open(dir)
	must(b, err)
	b.Cleanup(func() { f.Close() })
	return s, f
}

// opener opens 20,000 files, with a pause in seconds after each ten.
func opener(b *testing.B, cg *os.File, pause string) *exec.Cmd {
	c := exec.Command("/usr/bin/perl", "-e", `for $i (1..20000) { open(F, "<", "/etc/hostname"); close(F); select(undef, undef, undef, `+pause+`) if `+pause+` && $i % 10 == 0 }`)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	c.Stderr = os.Stderr
	return c
}

// cpuTime is what a process has used, in steps of 10 ms (proc(5), stat: utime and
// stime are the 14th and 15th field, the second one is in brackets).
func cpuTime(b *testing.B, pid int) (d time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	for _, s := range f[11:13] {
		n, err := strconv.Atoi(s)
		must(b, err)
		d += time.Duration(n) * 10 * time.Millisecond
	}
	return d
}
