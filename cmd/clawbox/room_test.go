package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"golang.org/x/sys/unix"
)

// TestNearlyFull: on a disk that fills, no agent is launched any more while those
// that run go on; with still less room they are stopped, on the record.
func TestNearlyFull(t *testing.T) {
	j := newJourney(t)
	j.check(os.Mkdir(j.host, 0o755))
	j.sh("truncate", "-s", "3G", j.at("disk"))
	j.sh("mkfs.ext4", "-q", "-m", "0", j.at("disk"))
	j.sh("mount", "-o", "loop", j.at("disk"), j.host)
	t.Cleanup(func() { j.sh("umount", j.host) })
	j.install()
	j.serve()
	j.ok("agent", "launch", "busy")

	j.fill(config.LaunchRoom - 64<<20)
	j.fails(4, "no agent is launched", "agent", "launch", "late", "--agent", "busy")
	j.fails(0, "NEARLY FULL", "status")
	j.fails(1, "no agent is launched below 536.9 MB", "doctor")
	if out, code := j.inside("echo on"); code != 0 || out != "on\n" {
		t.Errorf("the agent that ran already: status %d, %s", code, out)
	}

	j.fill(config.StopRoom - 64<<20)
	j.recorded("budget.disk")
	j.wait("the agent to be stopped", func() bool { return strings.Contains(j.ok("agent", "status", "busy"), "stopped on request") })
	j.check(os.Remove(j.host + "/filler"))
	j.ok("agent", "launch", "busy")
	j.ok("audit", "verify")
}

// fill leaves so many bytes of the host's disk free.
func (j *journey) fill(leave int64) {
	j.t.Helper()
	var st unix.Statfs_t
	j.check(unix.Statfs(j.host, &st))
	f, err := os.OpenFile(j.host+"/filler", os.O_CREATE|os.O_WRONLY, 0o600)
	j.check(err)
	defer f.Close()
	at, err := f.Seek(0, 2)
	j.check(err)
	n := int64(st.Bavail)*st.Bsize - leave
	if n <= 0 {
		j.t.Fatalf("%d bytes are to stay free, and no more are", leave)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, at, n); err != nil {
		j.t.Fatal(fmt.Errorf("take %d bytes: %w", n, err))
	}
}
