package holds

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/clawbox/clawbox/appliance/control"
)

// Check refuses a held request that is not what its digest says, or whose
// words are not those of its policy change. It is for those who show one to an
// operator, or act on the answer, and have it from a process that could have
// been taken over: the digest that an operator answers with then stands for
// this agent, this destination and this change, and for no others.
func Check(p control.Pending) error {
	if p.Digest != shownDigest(p) {
		return fmt.Errorf("%w: request %.40q is not what its digest says", ErrChanged, p.ID)
	}
	r, err := rule(p.Change)
	if err != nil {
		return fmt.Errorf("request %.40q: its policy change: %w", p.ID, err)
	}
	if w := words(Pending{Subject: Subject{Agent: p.Agent}, Policy: p.Policy, Allow: r}); w != p.Words {
		return fmt.Errorf("%w: request %.40q says %.200q of a change that means %.200q", ErrChanged, p.ID, p.Words, w)
	}
	return nil
}

// shownDigest is of every fact that an operator sees, but for the number of
// connections that wait and whether the sandbox is gone.
func shownDigest(p control.Pending) string {
	p.Digest, p.Waiting, p.Ended = "", 0, false
	p.Since, p.Until = p.Since.UTC(), p.Until.UTC()
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings, numbers and times of this century always encode
	}
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}
