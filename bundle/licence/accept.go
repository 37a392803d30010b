package licence

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// Terms are what an item of a release is under.
type Terms struct {
	Item            string
	Licence         string // SPDX expression; empty: not stated
	Redistributable bool   // may be handed on to others
	EULA            string // sha256 of a text that must be accepted, in hex; empty: none
}

// What an Acceptance says yes to.
const (
	EULA   = "eula"    // the text with SHA256 was read and accepted
	OwnUse = "own-use" // the item goes to hosts of the same organisation only
)

// Acceptance records a decision. It is kept in the lock, beside the digests that
// it was made for, so that it is reviewed like them.
type Acceptance struct {
	Item   string `yaml:"item" json:"item"`
	What   string `yaml:"what" json:"what"` // EULA or OwnUse
	SHA256 string `yaml:"sha256,omitempty" json:"sha256,omitempty"`
	By     string `yaml:"by" json:"by"`
	When   string `yaml:"when" json:"when"` // RFC 3339, UTC, whole seconds
	Line   int64  `yaml:"-" json:"-"`
}

var sumForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Check refuses an acceptance that doesn't say who accepted what and when.
func (a Acceptance) Check() error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) }
	switch when, err := time.Parse(time.RFC3339, a.When); {
	case a.Item == "":
		return fmt.Errorf("acceptance without an item")
	case a.What != EULA && a.What != OwnUse:
		return fmt.Errorf("acceptance for %s: what is %.40q, want %s or %s", a.Item, a.What, EULA, OwnUse)
	case (a.What == EULA) != sumForm.MatchString(a.SHA256) || a.What == OwnUse && a.SHA256 != "":
		return fmt.Errorf("acceptance for %s: sha256 %.80q, want the accepted text's for %s, none for %s", a.Item, a.SHA256, EULA, OwnUse)
	case strings.TrimSpace(a.By) == "" || len(a.By) > 256 || strings.ContainsFunc(a.By, bad):
		return fmt.Errorf("acceptance for %s: by is %.80q, want who accepted it", a.Item, a.By)
	case err != nil || when.Location() != time.UTC || when.Nanosecond() != 0:
		return fmt.Errorf("acceptance for %s: when is %.40q, want a time such as 2026-01-31T12:00:00Z", a.Item, a.When)
	}
	return nil
}

// Accept makes an acceptance of the text that r gives.
func Accept(item, by string, when time.Time, r io.Reader) (Acceptance, error) {
	sum, err := Digest(r)
	if err != nil {
		return Acceptance{}, fmt.Errorf("terms of %s: %w", item, err)
	}
	a := Acceptance{Item: item, What: EULA, SHA256: sum, By: by, When: when.UTC().Truncate(time.Second).Format(time.RFC3339)}
	return a, a.Check()
}

// ForOwnUse makes the record that an item goes to the organisation's own hosts.
func ForOwnUse(item, by string, when time.Time) (Acceptance, error) {
	a := Acceptance{Item: item, What: OwnUse, By: by, When: when.UTC().Truncate(time.Second).Format(time.RFC3339)}
	return a, a.Check()
}

// maxTerms bounds the text of terms, in bytes.
const maxTerms = 4 << 20

// Digest is the sha256 of a text of terms, in hex. An empty one is refused:
// nobody can have read it.
func Digest(r io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, maxTerms+1))
	if err == nil && (n == 0 || n > maxTerms) {
		err = fmt.Errorf("a text of %d bytes, want 1 to %d", n, maxTerms)
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

// RefusedError says what must be decided before the bundle can be made.
type RefusedError struct{ Missing []string }

func (e *RefusedError) Error() string {
	return "not everything in this bundle may be handed on:\n  " + strings.Join(e.Missing, "\n  ")
}

// Release refuses a bundle whose items may not be handed on, or whose terms are
// not accepted, and names them all.
func Release(terms []Terms, as []Acceptance) error {
	have := map[Acceptance]bool{}
	for _, a := range as {
		if err := a.Check(); err != nil {
			return err
		}
		have[Acceptance{Item: a.Item, What: a.What, SHA256: a.SHA256}] = true
	}
	var missing []string
	for _, t := range terms {
		if t.Licence != "" {
			if err := Check(t.Licence); err != nil {
				return fmt.Errorf("item %s: %w", t.Item, err)
			}
		}
		if t.EULA != "" && !have[Acceptance{Item: t.Item, What: EULA, SHA256: t.EULA}] {
			missing = append(missing, fmt.Sprintf("%s: its terms (sha256 %s) are not accepted: read them, then record it with --accept-terms %s --by NAME", t.Item, t.EULA, t.Item))
		}
		if !t.Redistributable && !have[Acceptance{Item: t.Item, What: OwnUse}] {
			missing = append(missing, fmt.Sprintf("%s (%s) is not redistributable: if the bundle goes to your own hosts only, record that with --for-own-use %s --by NAME", t.Item, stated(t.Licence), t.Item))
		}
	}
	if len(missing) > 0 {
		return &RefusedError{missing}
	}
	return nil
}

func stated(s string) string {
	if s == "" {
		return "licence not stated"
	}
	return s
}
