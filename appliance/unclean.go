package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/internal/durable"
)

// While the appliance runs, a file in the state folder says so. One that is
// there at a start tells that the last run had no end; what could not go on
// the ledger any more stands in it.
func (a *Appliance) runFile() string { return filepath.Join(a.cfg.Paths.State, "running") }

// begun records how the last run ended, if it didn't in order, and marks this
// one.
func (a *Appliance) begun(ctx context.Context) error {
	b, err := os.ReadFile(a.runFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		rec := ledger.Record{
			Kind: ledger.KindService, Verdict: ledger.Denied, Reason: "service.unclean",
			Detail: "the last run had no orderly end: " + strings.Join(strings.Fields(string(b)), " "),
		}
		if err := a.log.Record(ctx, rec); err != nil {
			return err
		}
	}
	return durable.WriteFile(a.runFile(), fmt.Appendf(nil, "since %s\n", a.started.Format(time.RFC3339)), 0o600)
}

// mourn keeps for the next start what the ledger can't take any more.
func (a *Appliance) mourn(why error) {
	b, _ := os.ReadFile(a.runFile()) // without it there is less to tell
	b = fmt.Appendf(b, "%s %v\n", time.Now().UTC().Format(time.RFC3339), why)
	if err := durable.WriteFile(a.runFile(), b, 0o600); err != nil {
		slog.Error("could not be kept for the next start", "error", err)
	}
}

// over marks an orderly end.
func (a *Appliance) over() error { return os.Remove(a.runFile()) }
