package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/internal/durable"
)

// changeFormat heads what the installer leaves about upgrades and the way back:
// files in <receipts>/changes, in the order of their names.
const changeFormat = "clawbox.io/change/v1"

// changeWords are an event's verdict, and what it says of the two releases.
var changeWords = map[string]struct {
	verdict ledger.Verdict
	text    string
}{
	"begun":     {ledger.Allowed, "from FROM to TO has begun"},
	"tried":     {ledger.Allowed, "from FROM to TO: the release is tried"},
	"committed": {ledger.Allowed, "from FROM to TO is committed"},
	"returned":  {ledger.Denied, "from FROM to TO was taken back"},
	"removed":   {ledger.Allowed, "of FROM has begun"},
	"restored":  {ledger.Allowed, "of FROM"},
}

var changeKinds = []string{"upgrade", "rollback", "uninstall", "restore"}

// recordInstaller puts on the ledger what the installer has left: receipts,
// and what became of changes.
func (a *Appliance) recordInstaller(ctx context.Context) error {
	a.telling.Lock()
	defer a.telling.Unlock()
	if err := a.recordReceipts(); err != nil {
		return err
	}
	events, err := filepath.Glob(filepath.Join(a.cfg.Paths.Receipts, "changes", "*.json"))
	if err != nil {
		return err
	}
	for _, p := range events { // Glob sorts
		if err := a.recordChange(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// recordChange records one event; a file NAME.entry says that it is recorded,
// as with receipts.
func (a *Appliance) recordChange(ctx context.Context, path string) error {
	mark := strings.TrimSuffix(path, ".json") + ".entry"
	if _, err := os.Stat(mark); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	type release struct{ Name, Version string }
	var e struct {
		Format, Event, Kind, Operator, Reason string
		From, To                              release
	}
	var all map[string]any
	if err := errors.Join(json.Unmarshal(b, &e), json.Unmarshal(b, &all)); err != nil {
		return err
	}
	w, ok := changeWords[e.Event]
	if e.Format != changeFormat || !ok || !slices.Contains(changeKinds, e.Kind) {
		return fmt.Errorf("got format %q, kind %q and event %q; wanted %s, as the installer of this release writes it", e.Format, e.Kind, e.Event, changeFormat)
	}
	from, to := e.From.Name+" "+e.From.Version, e.To.Name+" "+e.To.Version
	text := e.Kind + " " + strings.NewReplacer("FROM", from, "TO", to).Replace(w.text)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	at, err := a.log.Append(ctx, ledger.Record{
		Kind: ledger.KindInstall, Verdict: w.verdict, Reason: e.Kind + "." + e.Event, Detail: text,
		Attrs: map[string]any{"change": all, "op": e.Kind},
	})
	if err != nil {
		return err
	}
	return durable.WriteFile(mark, fmt.Appendf(nil, "%d\n", at), 0o600)
}
