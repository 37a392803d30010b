package holds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// state is the form of Config.File.
type state struct {
	Version int       `json:"version"` // 2
	Pending []Pending `json:"pending"`
	Grants  []Grant   `json:"grants"`
}

// stateV1 knew only what was allowed always.
type stateV1 struct {
	Version   int `json:"version"`
	Approvals []struct {
		Agent    string    `json:"agent"`
		Policy   string    `json:"policy"`
		Host     string    `json:"host"`
		Port     int       `json:"port"`
		Operator string    `json:"operator"`
		Time     time.Time `json:"time"`
	} `json:"approvals"`
}

// load reads path strictly.
func load(path string) (s state, err error) {
	if path == "" {
		return s, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		s, err = parse(b)
	}
	if err != nil {
		return s, fmt.Errorf("holds: %s: %w; correct it, or move it away to forget what was held and approved", path, err)
	}
	return s, nil
}

// parse is the only way from bytes to a state.
func parse(b []byte) (s state, err error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return s, err
	}
	switch v.Version {
	case 1:
		var old stateV1
		err = strict(b, &old)
		for _, a := range old.Approvals {
			s.Grants = append(s.Grants, Grant{
				ID: newID(), Subject: Subject{Agent: a.Agent, Host: a.Host, Port: a.Port}, Allow: true, Scope: Always, Policy: a.Policy, Operator: a.Operator, Time: a.Time,
			})
		}
	case 2:
		err = strict(b, &s)
	default:
		err = fmt.Errorf("got version %d, want 1 or 2", v.Version)
	}
	if err != nil {
		return s, err
	}
	return s, s.check()
}

// strict refuses unknown fields, keys that come twice and what follows the value.
func strict(b []byte, into any) error {
	if err := unique(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("got data after the end")
	}
	return nil
}

// unique reads one value and refuses objects with a key twice. Go's decoder
// takes keys in any case, so that counts as the same key.
func unique(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil || t != json.Delim('{') && t != json.Delim('[') {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		if t == json.Delim('{') {
			k, err := d.Token()
			if err != nil {
				return err
			}
			name := strings.ToLower(k.(string))
			if seen[name] {
				return fmt.Errorf("got %q twice in one object", name)
			}
			seen[name] = true
		}
		if err := unique(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// check refuses a state that this package did not write.
func (s state) check() error {
	ids, keys, always := map[string]bool{}, map[key]bool{}, map[string]bool{}
	for i, p := range s.Pending {
		if err := p.check(); err != nil {
			return err
		}
		var err error
		if s.Pending[i].Allow, err = rule(p.Change); err != nil {
			return fmt.Errorf("request %s: %w", p.ID, err)
		}
		if ids[p.ID] || keys[p.key()] {
			return fmt.Errorf("request %s stands there twice", p.ID)
		}
		ids[p.ID], keys[p.key()] = true, true
	}
	for _, g := range s.Grants {
		if err := g.check(); err != nil {
			return err
		}
		same := fmt.Sprint(g.Subject, g.Policy)
		if ids[g.ID] || g.Scope == Always && always[same] {
			return fmt.Errorf("the answer for %s of %s stands there twice", g.target(), g.Agent)
		}
		ids[g.ID] = true
		always[same] = always[same] || g.Scope == Always
	}
	return nil
}

func (s Subject) check() error {
	if host, err := policies.NormalizeHost(s.Host); err != nil || host != s.Host || s.Agent == "" || s.Port < 1 || s.Port > 65535 {
		return fmt.Errorf("got agent %.80q, host %.80q, port %d", s.Agent, s.Host, s.Port)
	}
	return nil
}

func (p Pending) check() error {
	if p.Digest != p.digest() || p.ID == "" {
		return fmt.Errorf("request %.40q is not what its digest says", p.ID)
	}
	return p.Subject.check()
}

func (g Grant) check() error {
	bad := g.ID == "" || g.Operator == "" || g.Scope != Once && g.Scope != Session && g.Scope != Always || g.Scope == Always && !g.Allow
	if bad || g.Scope == Session && g.Life == "" || g.Scope == Once && g.Until.IsZero() {
		return fmt.Errorf("got an answer %.40q of scope %.20q by %.80q that nobody gave", g.ID, g.Scope, g.Operator)
	}
	return g.Subject.check()
}

// save writes what is pending and what stands. The caller holds mu.
func (b *Book) save() error {
	now := time.Now()
	maps.DeleteFunc(b.grants, func(_ string, g Grant) bool { return g.Scope == Once && !now.Before(g.Until) })
	if b.c.File == "" {
		return nil
	}
	s := state{2, b.list(), b.standing()}
	for i := range s.Pending {
		s.Pending[i].Waiting = 0 // connections do not survive
	}
	t, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(b.c.File, append(t, '\n'), 0o600)
}
