package doctor

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/pods"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/installer"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// sound is a machine with nothing wrong.
func sound() Facts {
	return Facts{
		Now: noon, Root: "/", Failed: map[string]string{}, Start: "systemd", Unit: "active", Enabled: true,
		Installed:     installer.Situation{Release: "demo 1.0.0", Sequence: 1, Current: "/opt/clawbox/slots/1.0.0-1", Slot: "/opt/clawbox/slots/1.0.0-1", Kept: "demo 0.9.0"},
		ConfigRelease: 1, ReleaseTime: noon.Add(-time.Hour), NewestFile: noon,
		Status:  &control.Status{Tier: "T1", Services: []control.ServiceStatus{{Name: "ledger", PID: 7}}},
		Disks:   []Disk{{Path: "/var", Free: 50 << 30, Size: 100 << 30, Inodes: 1 << 20}},
		Ledger:  Ledger{Exists: true, Expect: true, Entries: 9, Full: true},
		Keys:    []Key{{Path: "/k", What: "key"}},
		Trust:   Trust{Keys: []string{"acme"}, Threshold: 1, Root: 3},
		Expires: []Expiry{{Path: "/c", Until: noon.Add(365 * 24 * time.Hour)}},
		Sockets: []Socket{{Path: "/run/c.sock", There: true}}, Tier: "T1", Accepted: "T3", Landlock: 6,
		Pods: Pods{Placed: true, Cluster: true}, Node: Node{Placed: true},
	}
}

// Every check has a machine that fails it, and only it; a sound one passes all.
func TestChecks(t *testing.T) {
	for _, r := range Judge(sound()) {
		if r.State != OK {
			t.Errorf("a sound machine: %s", r)
		}
	}
	down := func(f *Facts) { f.Control, f.Status = "nobody answers", nil }
	tested := map[string]bool{}
	for _, c := range []struct {
		check string
		state State
		harm  func(*Facts)
		word  string // in the remedy
	}{
		{"installed", Failure, func(f *Facts) { f.Installed = installer.Situation{} }, "clawbox install"},
		{"installed", Failure, func(f *Facts) { f.Installed.Release, f.Installed.Begun = "", "demo 1" }, "continues"},
		{"change", Failure, func(f *Facts) { f.Installed.Change, f.Installed.Tried = "upgrade", true }, "restart"},
		{"change", Failure, func(f *Facts) { down(f); f.Installed.Change, f.Installed.Touched = "upgrade", true }, "start the appliance"},
		{"change", Warning, func(f *Facts) { f.Installed.Change = "upgrade" }, "same command"},
		{"change", Note, func(f *Facts) { f.Installed.Change, f.Installed.Busy = "upgrade", true }, ""},
		{"slot", Failure, func(f *Facts) { f.Installed.Current = "/tmp" }, "puts the link right"},
		{"slot", Failure, func(f *Facts) { f.Programs = []string{"bin/clawbox"} }, "repairs"},
		{"kept", Warning, func(f *Facts) { f.Installed.KeptGone = true }, "rollback"},
		{"configuration", Failure, func(f *Facts) { f.ConfigRelease = 2 }, "put the file"},
		{"configuration", Failure, func(f *Facts) { f.Failed["config"] = "line 3: no" }, "correct"},
		{"service", Failure, func(f *Facts) { f.Unit = "failed" }, "journalctl"},
		{"service", Failure, down, "systemctl restart"},
		{"service", Failure, func(f *Facts) { down(f); f.Start = "none" }, "clawbox serve"},
		{"service", Warning, func(f *Facts) { f.Enabled = false }, "enable"},
		{"health", Failure, func(f *Facts) { f.Health = "no ledger" }, "clawbox status"},
		{"health", Failure, func(f *Facts) { down(f); f.Health = "refused" }, "start it"},
		{"parts", Failure, func(f *Facts) { f.Status.Services[0].PID = 0 }, "restart"},
		{"parts", Warning, func(f *Facts) { f.Status.Services[0].Restarts = 3 }, "replay"},
		{"protection", Failure, func(f *Facts) { f.Status.Lost = 1 }, "recordMiB"},
		{"protection", Warning, func(f *Facts) { f.Status.Weakenings = []string{"no guard"} }, "status"},
		{"kernel", Failure, func(f *Facts) { f.Tier = "T4" }, "boot the kernel"},
		{"disk", Failure, func(f *Facts) { f.Disks[0].Free = 1 << 20 }, "gc"},
		{"disk", Failure, func(f *Facts) { f.Disks[0].RO = true }, "dmesg"},
		{"disk", Warning, func(f *Facts) { f.Disks[0].Free = 500 << 20 }, "make room"},
		{"disk", Failure, func(f *Facts) { f.Disks[0].Ledger, f.Disks[0].Free = true, config.LaunchRoom-1 }, "gc"},
		{"disk", Warning, func(f *Facts) { f.Disks[0].Ledger, f.Disks[0].Free = true, config.LaunchRoom }, "make room"},
		{"disk", Warning, func(f *Facts) { f.Disks[0].Inodes = 3 }, "remove"},
		{"ledger", Failure, func(f *Facts) { f.Ledger.Fault = "wal: entry 3" }, "audit verify"},
		{"ledger", Failure, func(f *Facts) { f.Ledger.Exists = false }, "clawbox restore"},
		{"ledger", Note, func(f *Facts) { f.Ledger.Full = false }, ""},
		{"told", Warning, func(f *Facts) { f.Installed.Untold = 2 }, "start it"},
		{"clock", Failure, func(f *Facts) { f.Now = time.Unix(0, 0) }, "date -s"},
		{"clock", Warning, func(f *Facts) { f.NewestFile = noon.Add(time.Hour) }, "set it"},
		{"keys", Failure, func(f *Facts) { f.Keys[0].Fault = "mode 0644" }, "chmod"},
		{"trust", Note, func(f *Facts) { f.Trust.Root = 0 }, ""},
		{"certificates", Failure, func(f *Facts) { f.Expires[0].Until = noon.Add(-time.Hour) }, "replace"},
		{"certificates", Warning, func(f *Facts) { f.Expires[0].Until = noon.Add(30 * 24 * time.Hour) }, "replace"},
		{"certificates", Warning, func(f *Facts) {
			f.Expires = append(f.Expires, Expiry{Path: "/d", Until: noon.Add(5 * 24 * time.Hour), Renews: true})
		}, "restarted"},
		{"certificates", Note, func(f *Facts) { f.Expires = nil }, ""},
		{"store", Failure, func(f *Facts) { f.Missing = []string{"tiny"} }, "clawbox install"},
		{"mounts", Warning, func(f *Facts) { down(f); f.Mounts = []string{"/m"} }, "umount"},
		{"cgroups", Warning, func(f *Facts) { down(f); f.Kernel = []string{"/sys/fs/cgroup/clawbox-1"} }, "start it once"},
		{"sockets", Failure, func(f *Facts) { f.Sockets[0].There = false }, "restart"},
		{"sockets", Failure, func(f *Facts) { f.Sockets[0].Fault = "mode 0777" }, "anew"},
		{"sockets", Warning, down, "replaces"},
		{"addresses", Failure, func(f *Facts) { down(f); f.Taken = []string{"127.0.0.1:5000"} }, "ss -ltnp"},
		{"pods", Failure, func(f *Facts) { f.Pods.Fault = "it can't be executed" }, "restart k3s"},
		{"pods", Note, func(f *Facts) { f.Pods.Cluster = false }, ""},
		{"pods", Note, func(f *Facts) { f.Pods = Pods{} }, ""},
		{"node", Failure, func(f *Facts) { f.Node.Fault = "dial tcp 127.0.0.1:6443: connect: connection refused" }, "journalctl -u k3s"},
		{"node", Note, func(f *Facts) { f.Node = Node{} }, ""},
		{"last-end", Warning, func(f *Facts) { down(f); f.Unclean = "since noon" }, "records"},
	} {
		tested[c.check] = true
		f := sound()
		c.harm(&f)
		rs := Judge(f)
		r := rs[slices.IndexFunc(rs, func(r Result) bool { return r.Check == c.check })]
		if r.State != c.state || !strings.Contains(r.Remedy, c.word) || c.state != Note && (r.Cause == "" || r.Remedy == "") {
			t.Errorf("%s: got %s; want %s and %q", c.check, r, c.state, c.word)
		}
		if Failed([]Result{r}) != (c.state == Failure) {
			t.Errorf("%s: Failed is wrong", c.check)
		}
	}
	for _, c := range checks {
		if !tested[c.name] {
			t.Errorf("no machine fails %s", c.name)
		}
	}
}

// A node is looked at file by file: containerd's template, the runtime, its settings.
func TestLookPods(t *testing.T) {
	root := t.TempDir()
	l := installer.Layout{Prefix: root}
	entry, err := pods.Containerd(l.Runtime())
	if err != nil {
		t.Fatal(err)
	}
	file := func(path, text string, mode os.FileMode) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	conf := func(socket string) string {
		b, err := settings.Settings{Socket: socket, Runc: "/runc", Namespace: "clawbox-agents"}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, s := range []struct {
		path, text string
		mode       os.FileMode
		fault      string
	}{
		{l.ContainerdTemplate(), "another's", 0o600, "does not name"},
		{l.ContainerdTemplate(), "K3s's" + entry, 0o600, "no such file"},
		{l.Runtime(), "program", 0o644, "can't be executed"},
	} {
		file(s.path, s.text, s.mode)
		if f := Look(t.Context(), root); !f.Pods.Placed || !strings.Contains(f.Pods.Fault, s.fault) {
			t.Errorf("%s %q: got %+v, %v; want %q", s.path, s.text, f.Pods, f.Failed["pods"], s.fault)
		}
	}
	if err := os.Chmod(l.Runtime(), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, fault := range map[string]string{"{}": "want an absolute path", conf("/other/gate.sock"): "the appliance answers on", conf(filepath.Join(root, "run/clawbox/gate.sock")): ""} {
		file(settings.File(l.Runtime()), text, 0o644)
		if f := Look(t.Context(), root); !f.Pods.Placed || !strings.Contains(f.Pods.Fault, fault) || fault == "" && f.Pods.Fault != "" {
			t.Errorf("settings %s: got %+v; want %q", text, f.Pods, fault)
		}
	}
	if f := Look(t.Context(), t.TempDir()); f.Pods != (Pods{}) || f.Failed["pods"] != "" {
		t.Errorf("no node: %+v, %s", f.Pods, f.Failed["pods"])
	}
}

// What a cluster says is traced to its cause.
func TestNodeCause(t *testing.T) {
	for said, want := range map[string]string{
		"node box: DiskPressure: kubelet has disk pressure":                                 "disk is nearly full",
		"deployment a: x: ImagePullBackOff dial tcp 127.0.0.1:5000: connection refused":     "registry on this host",
		"Get \"https://127.0.0.1:6443/api\": dial tcp 127.0.0.1:6443: connection refused":   "K3s does not run",
		"stat /etc/rancher/k3s/k3s.yaml: no such file or directory":                         "has not run yet",
		"deployment a in b: 1 of 1 pods are up to date, 0 ready (x: CrashLoopBackOff, ...)": "ends again and again",
		"something else": "says so itself",
	} {
		f := sound()
		f.Node.Fault = said
		for _, r := range Judge(f) {
			if r.Check == "node" && !strings.Contains(r.Cause, want) {
				t.Errorf("%s: got %+v; want %q", said, r, want)
			}
		}
	}
}

// A host with nothing on it, and one with a certificate that has ended.
func TestLook(t *testing.T) {
	root := t.TempDir()
	f := Look(t.Context(), root)
	rs := Judge(f)
	if rs[0].State != Failure || !strings.Contains(rs[0].Got, "nothing is installed") {
		t.Errorf("an empty host: %s", rs[0])
	}
	if _, err := os.Stat(filepath.Join(root, "etc")); err == nil {
		t.Error("looking made something")
	}
	dir := filepath.Join(root, "var/lib/rancher/k3s/server/tls")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "k3s-client"}, NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "client.crt"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	f = Look(t.Context(), root)
	if len(f.Expires) != 1 || f.Expires[0].Subject != "k3s-client" || !f.Expires[0].Renews {
		t.Errorf("certificates: %+v, %v", f.Expires, f.Failed)
	}
}
