package manifest

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	fingerprintForm = regexp.MustCompile(`^[0-9a-f]{16}$`)
	sumForm         = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Check refuses what names no finding or gives no reason.
func (k AllowedKey) Check() error {
	if !fingerprintForm.MatchString(k.Fingerprint) {
		return fmt.Errorf("fingerprint %.40q: want 16 hex digits, as the scan for key material names them", k.Fingerprint)
	}
	return plain("why a key is allowed", k.Why, 1, 256)
}

// plain refuses text that doesn't have least to most printable bytes.
func plain(what, s string, least, most int) error {
	if len(s) < least || len(s) > most || strings.ContainsFunc(s, odd) {
		return fmt.Errorf("%s: %.80q: want %d to %d printable bytes", what, s, least, most)
	}
	return nil
}

// checkTerms holds what was decided about handing the item on to its form.
// Whether it was enough is the builder's business: see licence.Release.
func (it Item) checkTerms() error {
	if it.Terms != "" && !sumForm.MatchString(it.Terms) {
		return fmt.Errorf("terms %.80q: want a sha256 in hex", it.Terms)
	}
	for _, a := range it.Accepted {
		if err := a.Check(); err != nil {
			return err
		}
		if a.Item != it.Name {
			return fmt.Errorf("an acceptance for %.80q", a.Item)
		}
	}
	for _, k := range it.AllowedKeys {
		if err := k.Check(); err != nil {
			return err
		}
	}
	return nil
}

// maxAsks bounds each list of what a model's files say, maxSaid each text.
const (
	maxAsks = 4096
	maxSaid = 1024
)

// Plain makes text that a release may hold of what files say: printable, and
// of bounded length.
func Plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if odd(r) {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxSaid)]
}

func (it Item) checkModel() error {
	m := it.Model
	if m == nil {
		return nil
	}
	if it.Kind != "model" {
		return fmt.Errorf("facts of a model for a %s", it.Kind)
	}
	if len(m.Code) > maxAsks || len(m.Asks) > maxAsks || m.Params < 0 {
		return fmt.Errorf("model: %d files of code, %d requests to run it, want at most %d", len(m.Code), len(m.Asks), maxAsks)
	}
	said := append([]string{m.Format, m.Architecture, m.Precision, m.Quantization, m.Profile, m.Target}, m.Asks...)
	for _, c := range m.Code {
		if _, err := SumOf(c.Digest); err != nil {
			return err
		}
		said = append(said, c.Name)
	}
	for _, s := range said {
		if err := plain("model", s, 0, maxSaid); err != nil {
			return err
		}
	}
	return nil
}
