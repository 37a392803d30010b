package k3shost_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/internal/k3shost"
)

// TestUnits: a machine's systemctl starts, stops and restarts services by their
// unit files, starts what crashed, and starts at boot what is enabled.
func TestUnits(t *testing.T) {
	o := k3shost.Options{Name: "testunits", Dir: t.TempDir(), LAN: newLAN(t), Units: true, Beside: []string{"beside.service"}}
	dir := filepath.Join(o.Dir, "etc/systemd/system")
	for name, text := range map[string]string{
		"inside.service": "[Service]\nType=exec\nExecStart=/opt/inside a\nEnvironment=WORD=told\nRestart=always\nRestartSec=0s\n",
		"beside.service": "[Service]\nType=exec\nExecStart=/opt/inside b\nRuntimeDirectory=beside\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, "multi-user.target.wants"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, "opt/inside"), []byte("#!/bin/sh\necho $1 $WORD $(hostname) $$ >>/var/said\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := boot(t, o)
	said := func(n int) []string {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			b, _ := os.ReadFile(m.Path("/var/said"))
			if ls := strings.Split(strings.TrimSpace(string(b)), "\n"); len(ls) >= n && b != nil || time.Now().After(end) {
				return ls
			}
		}
	}
	run(t, m, "test -d /run/systemd/system && systemctl daemon-reload && systemctl start --no-block inside.service && systemctl start beside.service && test -d /run/beside")
	ls := said(2)
	if all := strings.Join(ls, "\n"); len(ls) != 2 || !strings.Contains(all, "a told testunits ") || !strings.Contains(all, "b testunits ") {
		t.Fatalf("said %q", ls)
	}
	run(t, m, "systemctl is-active --quiet inside.service && systemctl is-active --quiet beside.service")
	if err := m.Kill("inside.service"); err != nil {
		t.Fatal(err)
	}
	if ls = said(3); len(ls) != 3 {
		t.Fatalf("after a crash: %q", ls)
	}
	run(t, m, "systemctl restart inside.service; systemctl stop beside.service; ! systemctl is-active --quiet beside.service && ! test -e /run/beside; ! systemctl start none.service")
	if ls = said(4); len(ls) != 4 {
		t.Fatalf("after a restart: %q", ls)
	}
	if out := run(t, m, "pgrep -c sleep"); out != "1" {
		t.Errorf("%s services run", out)
	}
	if err := os.Symlink("../inside.service", filepath.Join(dir, "multi-user.target.wants/inside.service")); err != nil {
		t.Fatal(err)
	}
	if err := m.Halt(); err != nil {
		t.Fatal(err)
	}
	o.Addr = m.Addr
	m = boot(t, o)
	if ls = said(5); len(ls) != 5 || !strings.HasPrefix(ls[4], "a told") {
		t.Errorf("after a boot: %q", ls)
	}
}
