package sandbox

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInside looks at the world from inside. Each row is an attempt and the
// outcome that it must have.
func TestInside(t *testing.T) { inside(t, newBench(t), nil) }

// TestInsidePod is the same from inside of a pod. What differs is said here.
func TestInsidePod(t *testing.T) {
	b, _ := onNode(t)
	inside(t, b, map[string]string{
		"append=/bin/probe":              "EACCES", // its root is mounted read-only, not made so: Landlock is asked first
		"read=/proc/sys/vm/memfd_noexec": "ok 0",   // runc has no way to set it; "memfd=0" above is the filter's
	})
}

// inside makes the attempts. other are outcomes in place of the table's.
func inside(t *testing.T, b *bench, other map[string]string) {
	t.Helper()
	host := filepath.Join(t.TempDir(), "host-secret")
	if err := os.WriteFile(host, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	sealed := "ok 2"
	if !exists("/proc/sys/vm/memfd_noexec") {
		sealed = "ENOENT" // before Linux 6.3 the filter is alone
	}
	p := policy()
	p.Process.Exec = []string{"/bin/probe", "/tools/", "/bin/script"}
	p.Filesystem.Read = append(p.Filesystem.Read, "/usr/share/absent")
	tests := []struct{ try, want string }{
		// What the policy gives.
		{"read=/data/in", "ok input"},
		{"write=/workspace/f", "ok"},
		{"write=/tmp/f", "ok"},
		{"cwd", "ok /workspace"},
		{"env=HOME", "ok /workspace"},
		{"env=FROM", "ok image"},
		{"exec=/bin/probe print=x", "ok print=x: ok x"},
		{"exec=/tools/one print=x", "ok print=x: ok x"},
		{"exec=/tools/two print=x", "ok print=x: ok x"},
		{"exec=/bin/script", "ok print=from: ok from"},
		{"list=/dir", "ok new"},
		{"limit", "ok 256/256"},
		{"call=tcp", "ok"},
		{"write=/dev/null", "ok"},
		{"write=/dev/shm/f", "ok"},    // with /tmp
		{"memfd=0x8", sealedMemory()}, // made, but sealed against execution
		// Files: listed nowhere, read-only, or the host's.
		{"list=/", "EACCES"},
		{"read=/private/key", "EACCES"},
		{"read=" + host, "ENOENT"},
		{"list=/sys", "ENOENT"},
		{"mode=/gone", "ENOENT"},
		{"mode=/data/in", "ok -rw-r--r--"},
		{"write=/data/x", "EROFS"},
		{"write=/etc/passwd", "EROFS"},
		{"read=/etc/passwd", "ok agent:x:700000:700000:agent:/workspace:/bin/sh|root:x:0:0:root:/root:/bin/sh"},
		{"append=/bin/probe", "EROFS"},
		{"append=/proc/sys/kernel/hostname", "EACCES"},
		{"read=/proc/sys/kernel/hostname", "ok agent"},
		{"list=/dev", "ok fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"},
		{"read=/proc/sys/vm/memfd_noexec", sealed},
		{"read=/proc/self/cgroup", ""}, // checked below
		{"read=/proc/self/mountinfo", ""},
		{"read=/proc/cmdline", "ok"},
		{"read=/proc/interrupts", "ok"},
		{"read=/proc/softirqs", "ok"},
		{"read=/proc/diskstats", "ok"},
		{"read=/proc/partitions", "ok"},
		{"read=/proc/locks", "ok"},
		{"list=/proc/pressure", ""}, // some kernels lack it
		// Programs: unlisted, written by the agent, in memory, the launcher.
		{"exec=/usr/bin/hidden print=x", "EACCES"},
		{"exec=/workspace/f", "EACCES"},
		{"exec=/tmp/f", "EACCES"},
		{"exec=/proc/1/exe", "ENOENT"},
		{"memfd=0", "EPERM"},
		{"memfd=0x10", "EPERM"},
		// Processes: only the sandbox's own.
		{"kill=" + strconv.Itoa(os.Getpid()), "ESRCH"},
		{"signals=1", scoped()},
		{"read=/proc/1/environ", "ENOENT"},
		{"abstract=clawbox-sandbox-test", "ECONNREFUSED"},
		// Network: loopback, and down.
		{"links", "ok lo:loopback"},
		// Kernel.
		{"call=ptrace", "EPERM"},
		{"call=mount", "EPERM"},
		{"call=unshare", "EPERM"},
		{"call=setns", "EPERM"},
		{"call=chroot", "EPERM"},
		{"call=bpf", "EPERM"},
		{"call=io_uring", "EPERM"},
		{"call=clone_ns", "EPERM"},
		{"call=raw", "EPERM"},
		{"call=packet", "EPERM"},
		{"call=mptcp", "EPERM"},
		{"call=vsock", "EPERM"},
		{"call=netfilter", "EPERM"},
		{"call=persona", "EPERM"},
		{"call=keyctl", "EPERM"},
		{"call=setuid", "EPERM"},
		{"call=ulp", "EPERM"},
		{"call=nodelay", "EBADF"},
		{"call=setd", "EPERM"},
		{"call=getd", "EBADF"},
		{"call=clone3", "ENOSYS"},
		{"call=unknown", "ENOSYS"},
		{"userns", "EPERM"},
		{"status=CapInh,CapPrm,CapEff,CapBnd,CapAmb,NoNewPrivs,Seccomp,Groups", "ok Groups= CapInh=0000000000000000 CapPrm=0000000000000000 CapEff=0000000000000000 CapBnd=0000000000000000 CapAmb=0000000000000000 NoNewPrivs=1 Seccomp=2"},
	}
	ln, err := net.Listen("unix", "@clawbox-sandbox-test") // reachable only across namespaces
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	args := []string{
		"pids", "fds", "mounts",
		"read=/proc/cpuinfo", "read=/proc/meminfo", "read=/proc/stat", "read=/proc/uptime", "read=/proc/loadavg", "read=/proc/version",
	}
	for _, x := range tests {
		args = append(args, x.try)
	}
	box, out := b.start(Spec{Policy: p}, args...)
	if code, why := box.Wait(); code != 0 {
		t.Fatalf("status %d, %s; output:\n%s", code, why, out)
	}
	got := answers(out.String())
	for _, x := range tests {
		if w, ok := other[x.try]; ok {
			x.want = w
		}
		if x.want != "" && got[x.try] != x.want {
			t.Errorf("%s: got %q, want %q", x.try, got[x.try], x.want)
		}
	}
	// A runtime's mounts and cgroups show names of the host's, which lead nowhere.
	own := b.pods == nil
	if l := got["read=/proc/self/cgroup"]; !strings.HasPrefix(l, "ok ") || own && (strings.Contains(l, "..") || strings.Contains(l, b.l.parent)) {
		t.Errorf("cgroups show the host's: %s", l)
	}
	if l := strings.Fields(got["pids"]); len(l) != 2 || !strings.HasSuffix(l[1], ":probe") {
		t.Errorf("processes in sight: %q, want only itself", got["pids"])
	}
	for _, f := range strings.Fields(got["fds"]) {
		_, to, _ := strings.Cut(f, "->")
		if to != "" && !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:[event") && to != "/dev/null" {
			t.Errorf("descriptor %s is open in the sandbox", f)
		}
	}
	if strings.Contains(got["mounts"], b.state) {
		t.Errorf("mount options show the host's state directory: %s", got["mounts"])
	}
	for _, f := range []string{"cpuinfo", "meminfo", "stat", "uptime", "loadavg", "version"} {
		if len(got["read=/proc/"+f]) < len("ok x") {
			t.Errorf("runtimes need /proc/%s, got %q", f, got["read=/proc/"+f])
		}
	}
	if l := got["list=/proc/pressure"]; l != "ok" && l != "ENOENT" {
		t.Errorf("/proc/pressure: %q, want it empty", l)
	}
	// The kernel shows where a bind comes from; nothing else may.
	for l := range strings.SplitSeq(got["read=/proc/self/mountinfo"], "|") {
		f := strings.Fields(strings.TrimPrefix(l, "ok "))
		if !own {
			break
		}
		if len(f) < 5 || f[4] != "/workspace" && strings.Contains(l, filepath.Base(filepath.Dir(b.state))) {
			t.Errorf("mountinfo shows the host's state directory: %s", l)
		}
		if len(f) > 5 && strings.HasPrefix(f[4], "/proc/") && (!strings.Contains(f[5], "ro,") || !strings.Contains(f[5], "noexec")) {
			t.Errorf("what hides an entry of /proc is not read-only: %s", l)
		}
	}
	if n := box.Notes(); len(n) != 2 || !strings.Contains(n[1], "/usr/share/absent") || !strings.Contains(n[0], "bounded by the host") {
		t.Errorf("notes: %q, want one about the disk and one about /usr/share/absent", n)
	}
	var st unix.Stat_t
	if err := unix.Stat(b.l.Files("agent", "/workspace")+"/f", &st); err != nil || int(st.Uid) != box.UID() {
		t.Errorf("file written in /workspace: uid %d, %v; want uid %d", st.Uid, err, box.UID())
	}
}

// TestStrict: spawn false leaves threads and takes processes.
func TestStrict(t *testing.T) {
	b := newBench(t)
	p := policy()
	p.Process.Spawn, p.Process.Seccomp = false, "default" // the tighter word wins
	got, code, _ := b.run(Spec{Policy: p}, "exec=/bin/probe print=x", "sleep=0.01", "call=tcp", "links")
	if code != 0 || got["exec=/bin/probe print=x"] != "EPERM" || got["call=tcp"] != "ok" || got["links"] == "ok lo:loopback" {
		t.Errorf("status %d, %v", code, got)
	}
}

// sealedMemory is what executing a sealed memory file gives: one that the kernel
// refuses to make (before 6.3) is not executed either.
func sealedMemory() string {
	if !exists("/proc/sys/vm/memfd_noexec") {
		return "EINVAL"
	}
	return "EACCES"
}
