package bundle

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle/licence"
)

// checkTerms holds what an item says of its licence to its form.
func (r Recipe) checkTerms(it Item) error {
	if it.Licence != "" {
		if err := licence.Check(it.Licence); err != nil {
			return r.fail(it.Line, err.Error(), "an SPDX licence expression for "+it.Name, "")
		}
	}
	if sum, ok := strings.CutPrefix(it.Terms, "sha256:"); ok && !sha256Form.MatchString(sum) {
		return r.fail(it.Line, fmt.Sprintf("terms %.80q", it.Terms), "the path of a text, or sha256:<64 lower-case hex digits>", "")
	}
	for _, k := range it.AllowedKeys {
		if err := k.Check(); err != nil {
			return r.fail(k.Line, err.Error(), "a fingerprint, and why the key may be there", "")
		}
	}
	return nil
}

// eula is the sha256 of the item's terms, in hex; "" when it has none.
func (r Recipe) eula(it Item) (string, error) {
	if sum, ok := strings.CutPrefix(it.Terms, "sha256:"); ok || it.Terms == "" {
		return sum, nil
	}
	f, err := os.Open(r.path(it.Terms))
	if err != nil {
		return "", fmt.Errorf("item %s: terms: %w", it.Name, err)
	}
	defer f.Close()
	sum, err := licence.Digest(f)
	if err != nil {
		return "", fmt.Errorf("item %s: terms %s: %w", it.Name, it.Terms, err)
	}
	return sum, nil
}

// Consent is what somebody decides about items of a recipe, by name: that the
// texts that their terms name were read and accepted, and that they go to hosts
// of the same organisation only.
type Consent struct {
	Terms, OwnUse []string
	By            string // who decides
}

// settleTerms reads the items' terms, adds the consent to what the lock has, and
// refuses a bundle with items that may not be handed on.
func (b *build) settleTerms() error {
	b.terms = make([]string, len(b.recipe.Items))
	var all []licence.Terms
	for i, it := range b.recipe.Items {
		sum, err := b.recipe.eula(it)
		if err != nil {
			return err
		}
		b.terms[i] = sum
		all = append(all, licence.Terms{Item: it.Name, Licence: it.Licence, Redistributable: it.Redistributable, EULA: sum})
	}
	if err := b.consent(); err != nil {
		return err
	}
	for _, a := range b.accepted {
		if b.recipe.item(a.Item) < 0 {
			return &LockError{b.Lock, a.Item, "an acceptance for an item that the recipe lacks", "acceptances for its items"}
		}
	}
	return licence.Release(all, b.accepted)
}

// item is the place of the item of that name, or -1.
func (r Recipe) item(name string) int {
	return slices.IndexFunc(r.Items, func(it Item) bool { return it.Name == name })
}

// consent records what BuildOptions.Consent says. A new decision takes the place
// of an old one about the same.
func (b *build) consent() error {
	when, err := decided()
	if err != nil {
		return err
	}
	for what, names := range map[string][]string{licence.EULA: b.Consent.Terms, licence.OwnUse: b.Consent.OwnUse} {
		for _, n := range names {
			i := b.recipe.item(n)
			if i < 0 {
				return fmt.Errorf("bundle: %s is accepted for %.80q, want an item of %s", what, n, b.Recipe)
			}
			a := licence.Acceptance{Item: n, What: what, By: b.Consent.By, When: when.Format(time.RFC3339)}
			if what == licence.EULA {
				a.SHA256 = b.terms[i]
			}
			if what == licence.EULA && a.SHA256 == "" {
				return fmt.Errorf("bundle: item %s has no terms to accept: name their text in the recipe (terms:)", n)
			}
			if err := a.Check(); err != nil {
				return fmt.Errorf("bundle: %w", err)
			}
			b.accepted = slices.DeleteFunc(b.accepted, func(o licence.Acceptance) bool { return o.Item == n && o.What == what })
			b.accepted, b.decided = append(b.accepted, a), true
		}
	}
	slices.SortFunc(b.accepted, func(x, y licence.Acceptance) int {
		return strings.Compare(x.Item+"\x00"+x.What, y.Item+"\x00"+y.What)
	})
	return nil
}

// decided is the time of a decision.
func decided() (time.Time, error) { return created(Recipe{}, nil) }

// acceptedFor are the acceptances that count for an item now.
func (b *build) acceptedFor(i int) (out []licence.Acceptance) {
	it := b.recipe.Items[i]
	for _, a := range b.accepted {
		if a.Item == it.Name && (a.What == licence.EULA && a.SHA256 == b.terms[i] || a.What == licence.OwnUse && !it.Redistributable) {
			a.Line = 0
			out = append(out, a)
		}
	}
	return out
}

// kept are the acceptances of an old lock, for items that the recipe still has;
// a lock that can't be read has none.
func kept(path string, r Recipe) []licence.Acceptance {
	l, err := loadLock(path)
	if err != nil || l == nil {
		return nil
	}
	return slices.DeleteFunc(l.Acceptances, func(a licence.Acceptance) bool { return r.item(a.Item) < 0 })
}
