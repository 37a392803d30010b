package backup

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// noteFile is the archive's last entry: a signed note (C2SP signed-note) with two
// lines, Format and the sha256 of backup.json. No checkpoint of the ledger, which
// the same key signs, is one: its second line is a number.
const (
	noteFile = "backup.note"
	maxNote  = 4 << 10 // bytes
)

func noteText(list []byte) string {
	return fmt.Sprintf("%s\nsha256:%x\n", Format, sha256.Sum256(list))
}

func sign(list []byte, key note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: noteText(list)}, key)
}

// readKey parses the key in a file. Its errors never say what is in the file.
func readKey[K any](path string, parse func(string) (K, error)) (k K, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return k, err
	}
	if k, err = parse(strings.TrimSpace(string(b))); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return k, err
}

func verifier(path string) (note.Verifier, error) { return readKey(path, note.NewVerifier) }

// public is the other half of what signs, as the host has it.
func (w *writing) public() (string, error) {
	return readKey(w.l.LedgerV(), func(text string) (string, error) {
		v, err := note.NewVerifier(text)
		if err == nil && v.KeyHash() != w.key.KeyHash() {
			err = fmt.Errorf("it is not the other half of %s", w.l.LedgerS())
		}
		return text, err
	})
}

// ErrSigner says that nobody whom this host knows has signed the backup.
var ErrSigner = errors.New("the backup is not signed by a ledger that this host knows")

// signed wants the backup to be by the ledger in place, or by the one that the
// operator named: whoever edits a backup chooses what this host trusts.
func (t *restoring) signed() error {
	v := t.o.Key
	if v == nil {
		var err error
		if v, err = verifier(t.l.LedgerV()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if v == nil {
		return unknown(t.about.Key, "no ledger")
	}
	n, err := note.Open(t.note, note.VerifierList(v))
	var other *note.UnverifiedNoteError
	if errors.As(err, &other) {
		return unknown(t.about.Key, fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()))
	}
	if err != nil {
		return fmt.Errorf("%s: %w; take another copy", noteFile, err)
	}
	if n.Text != t.text {
		return fmt.Errorf("%s is signed, but of another list than the backup's; take another copy", noteFile)
	}
	return nil
}

func unknown(said, have string) error {
	return fmt.Errorf("%w: got one that says it is by %.200q; wanted one by %s; on a new machine name the lost one's key, as you wrote it down, with --ledger-key", ErrSigner, said, have)
}

// LoadKey reads a ledger's public key, NAME+HASH+KEY, or the file that holds one. Its
// errors never show a text that could be a private one.
func LoadKey(s string) (note.Verifier, error) {
	const wanted = "wanted a ledger's public key, NAME+HASH+KEY, or the file with one (etc/clawbox/ledger.vkey)"
	if strings.Contains(s, "+") {
		v, err := note.NewVerifier(strings.TrimSpace(s))
		if err != nil {
			return nil, errors.New("got a text that is no public key; " + wanted)
		}
		return v, nil
	}
	v, err := verifier(s)
	if err != nil {
		return nil, fmt.Errorf("got %.80q; %s: %w", s, wanted, err)
	}
	return v, nil
}
