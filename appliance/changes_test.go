package appliance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// TestChangesAreRecorded: what the installer left about an upgrade is on the
// ledger once, in order, and what it can't have left stops the start.
func TestChangesAreRecorded(t *testing.T) {
	a := bare(t)
	dir := filepath.Join(a.cfg.Paths.Receipts, "changes")
	must(t, os.Mkdir(dir, 0o700))
	put := func(name, event, reason string) {
		text := `{"format":"clawbox.io/change/v1","event":"` + event + `","kind":"upgrade","from":{"name":"demo","version":"1.0.0"},"to":{"name":"demo","version":"2.0.0"},"operator":"ann","reason":"` + reason + `"}`
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	put("000001-1-begun.json", "begun", "")
	put("000001-2-tried.json", "tried", "")
	must(t, a.openLedgerBy(openHere))
	put("000001-3-returned.json", "returned", "gate tier: T4")
	must(t, a.recordInstaller(t.Context()))
	must(t, a.recordInstaller(t.Context()))
	must(t, a.log.Close())
	var got []string
	for _, r := range entries(t, a) {
		got = append(got, r.Reason+" "+string(r.Verdict))
	}
	if s := strings.Join(got, ", "); s != "install.receipt allowed, upgrade.begun allowed, upgrade.tried allowed, upgrade.returned denied" {
		t.Errorf("the ledger has %s", s)
	}
	rs := entries(t, a)
	if d := rs[3].Detail; rs[3].Kind != ledger.KindInstall || !strings.Contains(d, "from demo 1.0.0 to demo 2.0.0") || !strings.Contains(d, "T4") {
		t.Errorf("got %q", d)
	}
	put("000002-1-begun.json", "forged", "")
	if err := a.openLedgerBy(openHere); err == nil || !strings.Contains(err.Error(), "forged") {
		t.Errorf("an unknown event: %v", err)
	}
	a.log.Close()
}
