package installer

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// node is K3s to the installer's eyes: it starts with BootNode, and writes its
// datastore.
type node struct {
	t    *testing.T
	l    Layout
	role string   // "": a server
	runs string   // the program; "": it does not run
	ran  []string // all of them
}

func (n *node) Running(context.Context) bool { return n.runs != "" }
func (n *node) Alive(context.Context) error  { return nil }
func (n *node) Stays() bool                  { return true }
func (n *node) Stop(context.Context) error   { n.runs = ""; return nil }
func (n *node) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := BootNode(ctx, n.l.Prefix, cmp.Or(n.role, RoleServer), nil)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(s.Program)
	if err != nil {
		return err
	}
	n.runs = strings.TrimPrefix(string(b), "\x7fELF k3s ")
	n.ran = append(n.ran, n.runs)
	if n.role == RoleAgent {
		return nil
	}
	db := filepath.Join(n.l.Datastore(), "state.db")
	had, _ := os.ReadFile(db)
	if !strings.Contains(string(had), n.runs) {
		write(n.t, db, string(had)+" "+n.runs)
	}
	if n.runs == "1.35.0+k3s1" {
		write(n.t, db+"-wal", "half a page")
		write(n.t, n.l.at("var/lib/rancher/k3s/server/manifests/new.yaml"), "new")
	}
	return nil
}

// server is an installed server that has run, with its services.
func server(t *testing.T) (Layout, *played, *node) {
	t.Helper()
	l := installedServer(t, makeUpCluster())
	p, n := &played{root: l.Prefix, stays: true}, &node{t: t, l: l}
	for f, text := range map[string]string{"db/state.db": "begun", "token": "K10secret", "tls/server-ca.crt": "cert", "cred/passwd": "x", "tls/etcd/client.key": "k"} {
		path := l.at("var/lib/rancher/k3s/server/" + f)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, text)
	}
	if err := (withNode{p, n}).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(context.Background()) })
	return l, p, n
}

func upgradeServer(l Layout, p *played, n *node, c *standIn, m *madeUp) error {
	plan, err := NewUpgrade(nodeFacts(l.Prefix), l.Prefix, "", m.Release)
	if err != nil {
		return err
	}
	_, err = Apply(context.Background(), plan, ChangeEnv{Trust: m.trust, Load: m.beside, Service: withNode{p, n}, Cluster: c, Deadline: 5 * time.Second})
	return err
}

func config0(t *testing.T, l Layout) string {
	return read(t, l.at("etc/rancher/k3s/config.yaml"))
}

// K3s goes with the release: forward with what it has, by itself back with what
// it had, and back by hand with what it had then.
func TestUpgradeServer(t *testing.T) {
	l, p, n := server(t)
	db := filepath.Join(l.Datastore(), "state.db")
	first, c := config0(t, l), &standIn{}

	// One that is not ready is taken back.
	c.sickWith = "v1.35.0+k3s1"
	c.sick = errors.New("deployment coredns in kube-system: 0 of 1 pods are up to date")
	err := upgradeServer(l, p, n, c, clusterRelease(2, "1.35.0+k3s1"))
	var back *ReturnedError
	if !errors.As(err, &back) || !strings.Contains(err.Error(), "coredns") {
		t.Fatal(err)
	}
	if !slices.Equal(n.ran, []string{"1.34.0+k3s1", "1.35.0+k3s1", "1.34.0+k3s1"}) || read(t, db) != "begun 1.34.0+k3s1" || there(db+"-wal") {
		t.Errorf("K3s ran as %q, its datastore is %q", n.ran, read(t, db))
	}
	if config0(t, l) != first || there(l.at("var/lib/rancher/k3s/server/manifests/new.yaml")) {
		t.Error("what K3s reads is not what it was")
	}
	last, err := LastTurn(l.Prefix)
	if err != nil || last.Event != "returned" || !strings.Contains(last.Reason, "coredns") {
		t.Errorf("the last turn is %+v, %v", last, err)
	}

	c.sick = nil
	if err := upgradeServer(l, p, n, c, clusterRelease(2, "1.35.0+k3s1")); err != nil {
		t.Fatal(err)
	}
	if n.runs != "1.35.0+k3s1" || read(t, db) != "begun 1.34.0+k3s1 1.35.0+k3s1" || config0(t, l) == first {
		t.Errorf("K3s runs as %q, its datastore is %q", n.runs, read(t, db))
	}
	w := c.wanted
	if w.Version != "v1.35.0+k3s1" || w.Node != "edge-7" || !slices.Contains(w.Namespaces, "kube-system") || len(w.Addons["clawbox-coredns"]) != 64 || len(c.charts) == 0 {
		t.Errorf("asked of the cluster: %+v, %d charts", w, len(c.charts))
	}

	for _, old := range []bool{false, false, true} { // back, forward, and back with all state
		plan, err := NewRollback(nodeFacts(l.Prefix), l.Prefix, "Bob", old)
		if err != nil {
			t.Fatal(err)
		}
		down := strings.Contains(plan.To, "0.1.1")
		if said := strings.Contains(strings.Join(plan.Notes, "\n"), "cluster's objects"); said != (down && !old) {
			t.Errorf("notes: %q", plan.Notes)
		}
		if _, err := Apply(t.Context(), plan, ChangeEnv{Service: withNode{p, n}, Cluster: c}); err != nil {
			t.Fatal(err)
		}
		want := "begun 1.34.0+k3s1 1.35.0+k3s1"
		if down {
			want = "begun 1.34.0+k3s1"
		}
		if read(t, db) != want || n.runs != want[strings.LastIndex(want, " ")+1:] || (config0(t, l) == first) != down || there(db+"-wal") == down {
			t.Errorf("%s: K3s runs as %q, its datastore is %q", plan.To, n.runs, read(t, db))
		}
	}
}

// What may follow is decided by the release's own K3s.
func TestUpgradeServerRefused(t *testing.T) {
	l, p, n := server(t)
	before := tree(t, l.Prefix)
	silent := clusterRelease(2, "1.35.0+k3s1")
	silent.Components = nil
	for _, c := range []struct {
		m    *madeUp
		word string
	}{
		{clusterRelease(2, "1.36.0+k3s1"), "in between"},
		{clusterRelease(2, "1.33.0+k3s1"), "wanted 1.34.0+k3s1 to 1.35"},
		{silent, "components"},
	} {
		if err := upgradeServer(l, p, n, &standIn{}, c.m); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("got %v; want %q", err, c.word)
		}
	}
	if err := upgradeServer(l, p, n, &standIn{}, clusterRelease(2, "1.36.0+k3s1")); !errors.Is(err, manifest.ErrSkipped) {
		t.Errorf("got %v", err)
	}
	diffTrees(t, tree(t, l.Prefix), before)
}

// While a change is half made no K3s starts: not the old one on what the new one
// wrote, nor the new one once its try has failed.
func TestBootNode(t *testing.T) {
	l := installedServer(t, makeUpCluster())
	slot, to := l.Slot("0.1.1", 1), head{"demo", "0.2.0", 2, "d", "p"}
	if got, why, err := l.nodeSlot(); err != nil || got != slot {
		t.Fatalf("without any change: %q, %q, %v", got, why, err)
	}
	open := `{"event":"begin","change":{"id":1,"kind":"upgrade","from":{},"to":{"name":"demo","version":"0.2.0","sequence":2,"digest":"d","plan":"p"},"operator":"a","profile":"cluster"}}` + "\n"
	line := func(event, step string) string { return `{"event":"` + event + `","step":"` + step + `"}` + "\n" }
	touched := open + line("start", "stop") + line("start", "carry")
	for _, c := range []struct {
		name, journal string
		watched       bool
		tried         bool
		want          string
	}{
		{"begun", open, true, false, slot},
		{"stopped", open + line("start", "stop"), true, false, ""},
		{"armed", touched, true, false, ""},
		{"tried", touched, true, true, l.slotOf(to)},
		{"failed", touched + line("fail", "gates"), true, true, ""},
		{"going back", touched + line("fail", "gates") + line("return", ""), true, true, ""},
		{"committed", touched + line("commit", ""), true, true, ""},
		{"cut off before", open + line("start", "stop"), false, false, slot},
		{"cut off", touched, false, true, ""},
		{"cut off after the commit", touched + line("commit", ""), false, true, ""},
		{"ended", touched + line("end", ""), false, false, slot},
	} {
		write(t, l.Changes(), c.journal)
		if err := gone(l.Tried()); err != nil {
			t.Fatal(err)
		}
		if c.tried {
			write(t, l.Tried(), "1")
		}
		unlock := func() {}
		if c.watched {
			var err error
			if unlock, err = lock(l.Lock()); err != nil {
				t.Fatal(err)
			}
		}
		got, why, err := l.nodeSlot()
		if err != nil || got != c.want || (got == "") != (why != "") {
			t.Errorf("%s: got %q, %q, %v; want %q", c.name, got, why, err, c.want)
		}
		unlock()
	}
}

// A K3s from source finds itself under its other names; what it was started as
// is known while it runs, and not afterwards.
func TestNodeStart(t *testing.T) {
	m := makeUpCluster()
	m.add(Item{Name: "runc", Kind: "file", Path: runcPath, Mode: 0o755}, "\x7fELF runc")
	l := installedServer(t, m)
	s, err := BootNode(t.Context(), l.Prefix, "server", nil)
	slot := l.Slot("0.1.1", 1)
	if err != nil || s.Program != slot+"/bin/k3s" || !slices.Equal(s.Args, []string{s.Program, "server"}) ||
		!slices.ContainsFunc(s.Env, func(e string) bool {
			return strings.HasPrefix(e, "PATH="+slot+"/bin:"+slot+"/bin/cni:"+l.at("run/clawbox/k3s")+":")
		}) {
		t.Fatalf("got %+v, %v", s, err)
	}
	if to, err := os.Readlink(l.at("run/clawbox/k3s/containerd")); err != nil || to != s.Program {
		t.Errorf("containerd is %s, %v", to, err)
	}
	if err := s.Enter(l.Prefix, func(string, []string, []string) error { return nil }); err != nil || l.node() != os.Getpid() {
		t.Errorf("got %d, %v", l.node(), err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	st, err := procStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	write(t, l.nodePid(), strings.Join([]string{strconv.Itoa(cmd.Process.Pid), st[statBegan]}, " "))
	if l.node() != cmd.Process.Pid {
		t.Errorf("got %d", l.node())
	}
	a, _, err := Kept(l.Prefix, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if err := nodeService(a).Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || l.node() != 0 {
		t.Errorf("it ended with %v; %d runs", err, l.node())
	}
}

// The datastore is not touched while somebody has it open, and copied from a
// K3s that runs without a write falling into the copy.
func TestDatastore(t *testing.T) {
	l, _, _ := server(t)
	db := filepath.Join(l.Datastore(), "state.db")
	d := l.database()
	write(t, db+"-shm", "index")
	write(t, db+"-wal", "log")
	hold := func(path string, kind int16, start, length int64) func() {
		unlock, err := lockBytes(t.Context(), path, byteRange{kind, start, length})
		if err != nil {
			t.Fatal(err)
		}
		return unlock
	}
	// As a connection in WAL mode does, for as long as it is open.
	open := hold(db, unix.F_RDLCK, sqliteLocks+2, 510)
	if _, err := d.alone(t.Context(), 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "systemctl stop k3s") {
		t.Errorf("with a K3s that runs: %v", err)
	}
	to := t.TempDir()
	if ok, err := CopyDatastore(t.Context(), l, to); !ok || err != nil {
		t.Errorf("a copy beside a K3s that runs: %v, %v", ok, err)
	}
	if read(t, filepath.Join(to, "state.db")) != read(t, db) || read(t, filepath.Join(to, "state.db-wal")) != "log" {
		t.Error("the copy is not what was there")
	}
	writing := hold(db+"-shm", unix.F_WRLCK, walLocks, 1)
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := CopyDatastore(short, l, to); err == nil || !strings.Contains(err.Error(), "writing") {
		t.Errorf("a copy beside a write: %v", err)
	}
	writing()
	open()
	unlock, err := d.alone(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockBytes(short, db, byteRange{unix.F_RDLCK, sqliteLocks + 2, 510}); err == nil {
		t.Error("a K3s could open it while it is being put back")
	}
	unlock()
	if ok, err := CopyDatastore(t.Context(), Layout{t.TempDir()}, to); ok || err != nil {
		t.Errorf("without a datastore: %v, %v", ok, err)
	}
}

// A node that joined waits for its server: a kubelet is never newer than the API
// server that it obeys.
func TestUpgradeJoined(t *testing.T) {
	l := joinedNode(t, makeUpCluster())
	p, n := &played{root: l.Prefix, stays: true}, &node{t: t, l: l, role: RoleAgent}
	if err := (withNode{p, n}).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(context.Background()) })
	ran := slices.Clone(n.ran)
	m := clusterRelease(2, "1.35.0+k3s1")
	for _, x := range []struct {
		c    *standIn
		want string
	}{
		{&standIn{version: "v1.34.0+k3s1"}, "upgrade the server first"},
		{&standIn{err: errors.New("connection refused")}, "connection refused"},
	} {
		err := upgradeServer(l, p, n, x.c, m)
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("got %v; want %q", err, x.want)
		}
		if !slices.Equal(n.ran, ran) || !p.Running(t.Context()) {
			t.Errorf("it was stopped: K3s ran as %q", n.ran)
		}
	}
	c := &standIn{version: "v1.35.1+k3s1"}
	if err := upgradeServer(l, p, n, c, m); err != nil {
		t.Fatal(err)
	}
	if n.runs != "1.35.0+k3s1" {
		t.Errorf("K3s %s runs", n.runs)
	}
	// The gate is the node itself, as the server sees it.
	want := Settled{Node: "edge-7", Version: "v1.35.0+k3s1", Steady: steadyTime}
	if got := c.wanted; got.Node != want.Node || got.Version != want.Version || got.Steady != want.Steady || got.Addons != nil || got.Namespaces != nil || c.charts != nil {
		t.Errorf("the gate wants %+v and applied %v; want %+v", got, c.charts, want)
	}
}
