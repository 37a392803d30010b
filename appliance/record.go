package appliance

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/internal/durable"
	"golang.org/x/mod/sumdb/note"
)

// openLedger opens the log, or begins it with the installation's receipt as
// entry 0. A log that does not hold is refused, never repaired.
func (a *Appliance) openLedger() error { return a.openLedgerBy(a.startLedger) }

// openLedgerBy does it with open, once the log exists.
func (a *Appliance) openLedgerBy(open func(ledgerConfig) (journal, error)) error {
	key, err := ledgerKey(filepath.Join(a.cfg.Paths.Keys, "ledger.key"))
	if err != nil {
		return err
	}
	c := ledgerConfig{a.cfg.Paths.Ledger, key}
	if err := a.createLedger(c); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	l, err := open(c)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	a.log = l
	return a.recordInstaller(context.Background())
}

// createLedger makes an empty log where there is none. This is the one moment
// at which the supervisor has the log open.
func (a *Appliance) createLedger(c ledgerConfig) error {
	old, err := os.ReadDir(c.Dir)
	if err == nil && len(old) > 0 {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := a.unused(); err != nil {
		return err
	}
	signer, _, err := keyPair(c.Key)
	if err != nil {
		return err
	}
	l, err := ledger.Create(c.Dir, signer)
	if err != nil {
		return err
	}
	return l.Close()
}

// unused refuses to begin a second ledger on a host that had one: the first
// was deleted, and a new one would hide that.
func (a *Appliance) unused() error {
	marks, err := filepath.Glob(filepath.Join(a.cfg.Paths.Receipts, "*.entry"))
	if err != nil || len(marks) == 0 {
		return err
	}
	return fmt.Errorf("the ledger in %s is gone, and %s says that there was one; restore it from a copy", a.cfg.Paths.Ledger, marks[0])
}

// ledgerKey reads the checkpoint signing key that the installer made.
func ledgerKey(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("ledger key: %w; 'clawbox install' makes it", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("ledger key %s has mode %04o, want 0600: others may have read it", path, st.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(b))
	if _, _, err := keyPair(key); err != nil {
		return "", fmt.Errorf("ledger key %s: %w", path, err)
	}
	return key, nil
}

// keyPair parses a signed-note signer key (C2SP signed-note), from which the
// verifier key follows.
func keyPair(skey string) (note.Signer, note.Verifier, error) {
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, nil, err
	}
	vkey, err := verifierKey(skey)
	if err != nil {
		return nil, nil, err
	}
	v, err := note.NewVerifier(vkey)
	return s, v, err
}

// verifierKey derives the public half of a signer key that NewSigner took:
// PRIVATE+KEY+NAME+HASH+BASE64(algorithm byte, Ed25519 seed).
func verifierKey(skey string) (string, error) {
	f := strings.SplitN(skey, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil {
		return "", err
	}
	pub := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(f[2], pub)
}

// recordReceipts puts every installation receipt on the ledger that is not
// there yet. A file NUMBER.entry beside NUMBER.json says that one is; a crash
// between the two records it twice, never not at all.
func (a *Appliance) recordReceipts() error {
	nums, err := receipts(a.cfg.Paths.Receipts)
	if err != nil {
		return err
	}
	if len(nums) == 0 {
		return fmt.Errorf("no installation receipt in %s: the ledger begins with one; run 'clawbox install'", a.cfg.Paths.Receipts)
	}
	for _, n := range nums {
		if err := a.recordReceipt(filepath.Join(a.cfg.Paths.Receipts, strconv.FormatInt(n, 10))); err != nil {
			return err
		}
	}
	return nil
}

func (a *Appliance) recordReceipt(base string) error {
	if _, err := os.Stat(base + ".entry"); err == nil {
		return nil
	}
	b, err := os.ReadFile(base + ".json")
	if err != nil {
		return err
	}
	var receipt map[string]any
	if err := json.Unmarshal(b, &receipt); err != nil {
		return fmt.Errorf("receipt %s.json: %w", base, err)
	}
	at, err := a.log.Append(context.Background(), ledger.Record{
		Kind: ledger.KindInstall, Verdict: ledger.Allowed, Reason: "install.receipt",
		Detail: "release " + a.cfg.Release.Name + " " + a.cfg.Release.Version + " installed",
		Path:   a.cfg.Paths.Slot, Attrs: map[string]any{"receipt": receipt},
	})
	if err != nil {
		return err
	}
	return durable.WriteFile(base+".entry", fmt.Appendf(nil, "%d\n", at), 0o600)
}

// receipts lists the receipt numbers in dir, oldest first.
func receipts(dir string) ([]int64, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var nums []int64
	for _, f := range names {
		n, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(f), ".json"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("receipt %s: want a name like 1.json", f)
		}
		nums = append(nums, n)
	}
	slices.Sort(nums)
	return nums, nil
}
