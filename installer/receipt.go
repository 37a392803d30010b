package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/installer/host"
)

// ReceiptFormat heads a receipt.
const ReceiptFormat = "clawbox.io/receipt/v1"

// Receipt is <state>/receipts/<sequence>.json: what was installed, by whom, on
// what, and what was given up for it. The appliance makes it the first entry
// of its ledger.
type Receipt struct {
	Format     string            `json:"format"`
	Time       time.Time         `json:"time"`
	Operator   string            `json:"operator"`
	Release    config.Release    `json:"release"`
	Signers    []string          `json:"signers"`
	Plan       string            `json:"plan"`       // digest of the plan
	Weakenings map[string]string `json:"weakenings"` // accepted, with what each means
	Warnings   []Finding         `json:"warnings"`   // what preflight warned of
	Host       host.Facts        `json:"host"`
}

func (r *run) receiptPath() string {
	return filepath.Join(r.l.Receipts(), strconv.FormatInt(r.Release.Sequence, 10)+".json")
}

// receipt writes the receipt once per plan; its time is that of the first
// writing.
func (r *run) receipt(context.Context) (string, error) {
	p := r.receiptPath()
	if b, err := os.ReadFile(p); err == nil {
		if have, err := ParseReceipt(b); err == nil && have.Plan == r.Digest && have.Release.Digest == r.Release.Digest {
			return "", nil
		}
		if r.repair {
			return "", fmt.Errorf("%s is not the receipt of what is installed; it is the ledger's first entry: compare it with `clawbox audit replay --kind install`, and restore it from a backup", p)
		}
	}
	b, err := r.newReceipt()
	if err == nil { // of an earlier installation, or one that was begun with other answers
		err = gone(strings.TrimSuffix(p, ".json") + ".entry")
	}
	if err != nil {
		return "", err
	}
	return ensureFile(p, b, 0o600)
}

// newReceipt is the receipt of this plan, now.
func (r *run) newReceipt() ([]byte, error) {
	rc := Receipt{
		Format: ReceiptFormat, Time: time.Now().UTC(), Operator: r.Answers.Operator,
		Release: r.Answers.Config(r.Release).Release, Signers: r.Release.Signers, Plan: r.Digest,
		Weakenings: map[string]string{}, Host: r.Facts,
	}
	for _, w := range r.Answers.Accept {
		rc.Weakenings[w] = Weakenings[w]
	}
	for _, f := range r.Findings {
		if f.Severity == Warning {
			rc.Warnings = append(rc.Warnings, f)
		}
	}
	b, err := json.MarshalIndent(rc, "", "  ")
	return append(b, '\n'), err
}

// ParseReceipt reads a receipt strictly.
func ParseReceipt(b []byte) (Receipt, error) {
	var rc Receipt
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&rc); err != nil {
		return Receipt{}, fmt.Errorf("receipt: %w", err)
	}
	if d.More() || rc.Format != ReceiptFormat {
		return Receipt{}, fmt.Errorf("receipt: got format %q; wanted %s and nothing after it", rc.Format, ReceiptFormat)
	}
	return rc, nil
}
