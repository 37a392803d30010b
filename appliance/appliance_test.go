package appliance

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// bare is an Appliance with a ledger and one agent, and nothing that needs root.
func bare(t testing.TB) *Appliance {
	t.Helper()
	dir := t.TempDir()
	c := config.Config{Paths: config.Paths{
		Keys: filepath.Join(dir, "keys"), Ledger: filepath.Join(dir, "ledger"), Receipts: filepath.Join(dir, "receipts"),
		State: filepath.Join(dir, "state"), Slot: filepath.Join(dir, "slot"),
	}}
	for _, d := range []string{c.Paths.Keys, c.Paths.Receipts, c.Paths.Ledger, filepath.Join(c.Paths.State, "agents", "ada")} {
		must(t, os.MkdirAll(d, 0o700))
	}
	skey, _, err := note.GenerateKey(rand.Reader, "test/ledger")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(c.Paths.Keys, "ledger.key"), []byte(skey+"\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(c.Paths.Receipts, "1.json"), []byte(`{"release":"demo"}`), 0o600))
	a := &Appliance{cfg: c, agents: map[string]*agent{}, tier: guard.TierNone, tierWhy: "a test"}
	p, err := policies.Preset("sandbox")
	must(t, err)
	ag := &agent{agentSpec: agentSpec{Name: "ada"}, dir: filepath.Join(c.Paths.State, "agents", "ada"), tallies: map[string]tally{}}
	ag.govern(p)
	a.agents["ada"] = ag
	return a
}

// openHere opens the ledger in this process.
func openHere(c ledgerConfig) (journal, error) { return openLog(c) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entries reads the whole ledger.
func entries(t testing.TB, a *Appliance) (rs []ledger.Record) {
	t.Helper()
	for e, err := range ledger.Read(a.cfg.Paths.Ledger, 0) {
		must(t, err)
		rs = append(rs, e.Record)
	}
	return rs
}

// TestReceiptsComeFirst: entry 0 is the installation, a later receipt follows
// once, and a ledger that vanished is not begun again.
func TestReceiptsComeFirst(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	must(t, a.log.Close())
	must(t, os.WriteFile(filepath.Join(a.cfg.Paths.Receipts, "12.json"), []byte(`{"release":"next"}`), 0o600))
	for range 2 {
		must(t, a.openLedgerBy(openHere))
		must(t, a.log.Close())
	}
	rs := entries(t, a)
	if len(rs) != 2 || rs[0].Kind != ledger.KindInstall || rs[1].Kind != ledger.KindInstall {
		t.Fatalf("the ledger holds %+v, want the two receipts", rs)
	}
	must(t, os.RemoveAll(a.cfg.Paths.Ledger))
	if err := a.openLedgerBy(openHere); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("a second ledger: %v, want a refusal", err)
	}
}

func TestLedgerNeedsItsKeyAndReceipt(t *testing.T) {
	cases := map[string]struct {
		spoil func(config.Paths) error
		want  string
	}{
		"open to others": {func(p config.Paths) error { return os.Chmod(filepath.Join(p.Keys, "ledger.key"), 0o644) }, "want 0600"},
		"no key":         {func(p config.Paths) error { return os.Remove(filepath.Join(p.Keys, "ledger.key")) }, "clawbox install"},
		"no key inside": {func(p config.Paths) error {
			return os.WriteFile(filepath.Join(p.Keys, "ledger.key"), []byte("x"), 0o600)
		}, "malformed"},
		"no receipt":  {func(p config.Paths) error { return os.Remove(filepath.Join(p.Receipts, "1.json")) }, "receipt"},
		"odd receipt": {func(p config.Paths) error { return os.WriteFile(filepath.Join(p.Receipts, "x.json"), nil, 0o600) }, "want a name"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := bare(t)
			must(t, c.spoil(a.cfg.Paths))
			if err := a.openLedgerBy(openHere); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if a.log != nil {
				a.log.Close()
			}
		})
	}
}

func TestVerifierKey(t *testing.T) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "a/name")
	must(t, err)
	got, err := verifierKey(skey)
	if err != nil || got != vkey {
		t.Errorf("got %q, %v; want %q", got, err, vkey)
	}
}

// TestObserve: what the guard saw becomes the right record, and what is no
// news becomes none.
func TestObserve(t *testing.T) {
	a := bare(t)
	w := &witness{agents: func(string) (*governing, bool) { return a.agents["ada"].pol.Load(), true }}
	cases := []struct {
		name string
		e    guard.Event
		want ledger.Record // Kind "" for none
	}{
		{"program", guard.Event{Kind: guard.Exec, Path: "/bin/sh"}, ledger.Record{Kind: ledger.KindExec, Verdict: ledger.Allowed, Path: "/bin/sh", Reason: "exec.listed"}},
		{"killed", guard.Event{Kind: guard.Exec, Path: "/tmp/x", Killed: true}, ledger.Record{Kind: ledger.KindExec, Verdict: ledger.Denied, Path: "/tmp/x", Reason: "exec.unlisted"}},
		{"opened", guard.Event{Kind: guard.Opened, Path: "/etc/hosts", Access: guard.ReadOnly}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Allowed, Path: "/etc/hosts", Reason: "fs.read"}},
		{"written", guard.Event{Kind: guard.Opened, Path: "/tmp/a", Access: guard.ReadWrite}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Allowed, Path: "/tmp/a", Reason: "fs.write"}},
		{"refused", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "shadow", Dir: "/etc", Errno: syscall.EACCES}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Denied, Path: "/etc/shadow", Reason: "kernel.eacces"}},
		{"absent, where it may look", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "/usr/lib/none", Errno: syscall.ENOENT}, ledger.Record{}},
		{"absent and cut", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "/usr/././.", Errno: syscall.ENOENT, Cut: true}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Denied, Path: "/usr/././.", Reason: "kernel.enoent"}},
		{"absent, after others", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "/usr/x", Errno: syscall.ENOENT, SkippedMissing: 9}, ledger.Record{Kind: ledger.KindWeakening, Verdict: ledger.Denied, Reason: "guard.skipped"}},
		{"absent, where it may not", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "/root/.ssh/id", Errno: syscall.ENOENT}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Denied, Path: "/root/.ssh/id", Reason: "kernel.enoent"}},
		{"absent, by a detour", guard.Event{Kind: guard.Refused, Syscall: "openat", Path: "/usr/../root/x", Errno: syscall.ENOENT}, ledger.Record{Kind: ledger.KindFile, Verdict: ledger.Denied, Path: "/usr/../root/x", Reason: "kernel.enoent"}},
		{"exec refused", guard.Event{Kind: guard.Refused, Syscall: "execve", Path: "/usr/bin/nc", Errno: syscall.EACCES}, ledger.Record{Kind: ledger.KindExec, Verdict: ledger.Denied, Path: "/usr/bin/nc", Reason: "kernel.eacces"}},
		{"connect refused", guard.Event{Kind: guard.Refused, Syscall: "connect", Addr: "unix:/run/x", Errno: syscall.EACCES}, ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Denied, Host: "unix:/run/x", Reason: "kernel.eacces"}},
		{"connection begun", guard.Event{Kind: guard.Connect, Addr: "192.0.2.1:443"}, ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Allowed, Host: "192.0.2.1:443", Reason: "net.attempt"}},
		{"nobody there", guard.Event{Kind: guard.Connect, Addr: "unix:@x", Errno: syscall.ECONNREFUSED}, ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Denied, Host: "unix:@x", Reason: "kernel.econnrefused"}},
		{"no such socket", guard.Event{Kind: guard.Connect, Addr: "unix:/x", Errno: syscall.ENOENT}, ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Denied, Host: "unix:/x", Reason: "kernel.enoent"}},
		{"killed by seccomp", guard.Event{Kind: guard.Trapped, Syscall: "foreign:7"}, ledger.Record{Kind: ledger.KindKernel, Verdict: ledger.Denied, Reason: "kernel.sigsys"}},
		{"kill", guard.Event{Kind: guard.Refused, Syscall: "kill", Errno: syscall.ESRCH}, ledger.Record{Kind: ledger.KindKernel, Verdict: ledger.Denied, Reason: "kernel.esrch"}},
	}
	for _, c := range cases {
		c.e.Scope = "ada"
		rs := w.observe(nil, c.e)
		if c.want.Kind == "" {
			if len(rs) != 0 {
				t.Errorf("%s: got %+v, want no record", c.name, rs)
			}
			continue
		}
		if len(rs) != 1 {
			t.Errorf("%s: got %d records", c.name, len(rs))
			continue
		}
		r := rs[0]
		got := ledger.Record{Kind: r.Kind, Verdict: r.Verdict, Path: r.Path, Host: r.Host, Reason: r.Reason}
		if got.Kind != c.want.Kind || got.Verdict != c.want.Verdict || got.Path != c.want.Path || got.Host != c.want.Host || got.Reason != c.want.Reason {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
		if r.Agent != "ada" || r.Policy != a.agents["ada"].digest() {
			t.Errorf("%s: of agent %q, policy %q", c.name, r.Agent, r.Policy)
		}
	}
}

// TestStrikes: a budget that is hit all the time is recorded once, and the
// rest when the agent ends.
func TestStrikes(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	ag := a.agents["ada"]
	for range 10 {
		a.strike(ag, "processes", 3, "refused")
	}
	a.strikesLeft(ag)
	must(t, a.log.Close())
	var counts []any
	for _, r := range entries(t, a) {
		if r.Reason == "budget.processes" {
			counts = append(counts, r.Attrs["count"])
		}
	}
	if len(counts) != 2 || counts[0] != int64(3) || counts[1] != int64(27) {
		t.Errorf("recorded counts %v, want 3 and 27", counts)
	}
}

// TestLockedLayers: a reload may change the network and inference, nothing else.
func TestLockedLayers(t *testing.T) {
	const base = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\n"
	old, err := policies.Parse("x", []byte(base))
	must(t, err)
	for add, want := range map[string]string{
		"":                                     "",
		"network: {default: hold}\n":           "",
		"inference: {routes: []}\n":            "",
		"filesystem: {write: [/tmp, /data]}\n": "filesystem",
		"process: {exec: [/bin/sh]}\n":         "process",
		"budgets: {processes: 9}\n":            "budget",
		"audit: {files: all}\n":                "audit",
		"require: {tier: T4}\n":                "require",
	} {
		p, err := policies.Parse("x", []byte(base+add))
		must(t, err)
		if got := lockedChange(old, p); got != want {
			t.Errorf("%q changes %q, want %q", add, got, want)
		}
	}
}

// TestAdmit: a policy that wants more than the host gives is refused.
func TestAdmit(t *testing.T) {
	a := bare(t) // no guard: tier T4
	for src, want := range map[string]string{
		"":                      "requires guard tier T3",
		"require: {tier: T4}\n": "",
		"audit: {files: all}\nrequire: {tier: T4}\n": "audit.files: all",
		"nonsense: 1\n": "unknown field",
	} {
		ag := &agent{agentSpec: agentSpec{Name: "x", Policy: "x.yaml", Source: []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\n" + src)}}
		err := a.admit(ag)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", src, err, want)
		}
	}
}

func TestLaunchIsRefused(t *testing.T) {
	a := bare(t)
	cases := []struct {
		q    control.LaunchRequest
		code string
	}{
		{control.LaunchRequest{Name: "../etc"}, "invalid"},
		{control.LaunchRequest{Name: ""}, "invalid"},
		{control.LaunchRequest{Name: "Ada"}, "invalid"},
		{control.LaunchRequest{Name: "bob"}, "not_found"},
		{control.LaunchRequest{Name: "bob", Agent: "nobody"}, "not_found"},
		{control.LaunchRequest{Name: "ada", Agent: "nobody"}, "not_found"},
		{control.LaunchRequest{Name: "ada", Image: "other", Source: []byte("x: 1\n")}, "invalid"},
	}
	for _, c := range cases {
		_, err := a.Launch(context.Background(), c.q)
		var e *control.Error
		if !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%+v: got %v, want code %s", c.q, err, c.code)
		}
	}
	a.failure = errStopping
	if _, err := a.Launch(context.Background(), control.LaunchRequest{Name: "ada"}); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("while stopping: %v", err)
	}
}

// TestOutputIsBounded: a flood takes two files, and the newest output is kept.
func TestOutputIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output.log")
	o, err := openOutput(path)
	must(t, err)
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 40 {
		_, err := o.Write(chunk)
		must(t, err)
	}
	_, err = o.Write([]byte("the end"))
	must(t, err)
	must(t, o.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	if !bytes.HasSuffix(b, []byte("the end")) {
		t.Error("the newest output is gone")
	}
	var total int64
	for _, f := range []string{path, path + ".1"} {
		st, err := os.Stat(f)
		must(t, err)
		total += st.Size()
	}
	if total > 2*maxOutput+int64(len(chunk)) {
		t.Errorf("40 MiB of output took %d bytes", total)
	}
}

// TestFailClosed: once a record of something that happened can't be kept, work
// is refused and status says why.
func TestFailClosed(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	must(t, a.log.Close())
	a.strike(a.agents["ada"], "memory", 1, "killed")
	if err := a.refusal(); err == nil || !strings.Contains(err.Error(), "refuses work") {
		t.Errorf("after a record that failed: %v", err)
	}
}

// TestFailedLaunchLeavesNothing: an agent that could not start is not there
// afterwards, neither in memory nor for the next daemon.
func TestFailedLaunchLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("sandboxes need root; euid is %d", os.Geteuid())
	}
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	self, err := os.Executable()
	must(t, err)
	a.boxes, err = sandbox.Open(sandbox.Options{State: a.cfg.Paths.State, Launcher: self, UIDBase: 710_000})
	must(t, err)
	defer a.boxes.Close()
	a.cfg.Paths.Store = t.TempDir()
	must(t, a.openStore())
	must(t, a.log.Close()) // no record, so no start
	const src = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\nrequire: {tier: T4}\n"
	_, err = a.Launch(context.Background(), control.LaunchRequest{Name: "bob", Image: "i", Policy: "x.yaml", Source: []byte(src)})
	if err == nil || !strings.Contains(err.Error(), "ledger") {
		t.Fatalf("launched without a record: %v", err)
	}
	if _, err := a.agent("bob"); err == nil {
		t.Error("the agent is still listed")
	}
	if _, err := os.Stat(filepath.Join(a.agentsDir(), "bob", specFile)); err == nil {
		t.Error("the next daemon would find the agent")
	}
}

// TestLaunchNeedsRoom: no agent is launched where the ledger has little room left;
// the refusal names what is free, what is wanted and where, and status says so too.
func TestLaunchNeedsRoom(t *testing.T) {
	a := bare(t)
	disk, spare := t.TempDir(), 32<<20
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", config.LaunchRoom+spare)); err != nil {
		t.Skipf("mount tmpfs: %v: a full disk needs root and a mount", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	a.cfg.Paths.Ledger = filepath.Join(disk, "ledger")
	must(t, a.openLedgerBy(openHere))
	defer a.log.Close()
	must(t, a.roomy())
	must(t, os.WriteFile(filepath.Join(disk, "filler"), make([]byte, spare), 0o600))
	const src = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\nrequire: {tier: T4}\n"
	_, err := a.Launch(context.Background(), control.LaunchRequest{Name: "bob", Image: "i", Policy: "x.yaml", Source: []byte(src)})
	var e *control.Error
	if !errors.As(err, &e) || e.Code != "refused" {
		t.Fatalf("launched beside a full ledger: %v", err)
	}
	for _, want := range []string{"MB are free", "want 536.9 MB", a.cfg.Paths.Ledger, "registry gc"} {
		if !strings.Contains(e.Detail, want) {
			t.Errorf("the refusal lacks %q: %s", want, e.Detail)
		}
	}
	if st := a.Status(); st.Full == "" || st.Error != "" {
		t.Errorf("status says %q, and that work is refused for %q", st.Full, st.Error)
	}
	if _, err := os.Lstat(filepath.Join(a.agentsDir(), "bob")); err == nil {
		t.Error("the agent's folder was made")
	}
	must(t, os.Remove(filepath.Join(disk, "filler")))
	must(t, a.roomy())
	a.cfg.Paths.Ledger = filepath.Join(disk, "none")
	if err := a.roomy(); err == nil || !strings.Contains(err.Error(), "can't be told") {
		t.Errorf("where nothing can be looked at: %v", err)
	}
}

// TestTailFollowsTurnOver: a reader sees what is written before and after the
// file turns over.
func TestTailFollowsTurnOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output.log")
	o, err := openOutput(path)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	tl := &tail{path: path, f: f}
	defer tl.close()
	var got bytes.Buffer
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 17 {
		_, err := o.Write(chunk)
		must(t, err)
	}
	must(t, tl.copy(&got))
	_, err = o.Write([]byte("the end"))
	must(t, err)
	must(t, tl.copy(&got))
	if got.Len() != 17<<20+7 || !bytes.HasSuffix(got.Bytes(), []byte("the end")) {
		t.Errorf("read %d bytes, want all %d", got.Len(), 17<<20+7)
	}
}

// TestUsed: blocks are counted, and a folder too deep to be named counts as a
// great deal.
func TestUsed(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
	if n := used(dir); n < 1<<20 || n > 2<<20 {
		t.Errorf("1 MiB counts as %d", n)
	}
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	for range 30 { // 30 names of 200 bytes are more than a path may have
		name := strings.Repeat("d", 200)
		must(t, root.Mkdir(name, 0o700))
		next, err := root.OpenRoot(name)
		must(t, err)
		root.Close()
		root = next
	}
	if n := used(dir); n < hidden {
		t.Errorf("a folder that can't be named counts as %d", n)
	}
}
