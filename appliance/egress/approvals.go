package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// Approval is an answer for always.
type Approval struct {
	Agent    string    `json:"agent"`
	Policy   string    `json:"policy"` // name; another policy does not inherit it
	Host     string    `json:"host"`
	Port     int       `json:"port"`
	Operator string    `json:"operator"`
	Time     time.Time `json:"time"`
}

// standing is what an Approval is for.
type standing struct {
	agent, policy, host string
	port                int
}

func (a Approval) key() standing { return standing{a.Agent, a.Policy, a.Host, a.Port} }

// approvalsFile is the form of HoldsConfig.File.
type approvalsFile struct {
	Version   int        `json:"version"`
	Approvals []Approval `json:"approvals"`
}

// loadApprovals reads path strictly. A file that is not there has none.
func loadApprovals(path string) (map[standing]Approval, error) {
	out := map[standing]Approval{}
	if path == "" {
		return out, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("approvals: %w", err)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("approvals: %s: %s; correct it or move it away to have none", path, fmt.Sprintf(format, args...))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var f approvalsFile
	if err := d.Decode(&f); err != nil {
		return nil, bad("%v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad("got data after the end")
	}
	if f.Version != 1 {
		return nil, bad("got version %d, want 1", f.Version)
	}
	for _, a := range f.Approvals {
		if host, err := policies.NormalizeHost(a.Host); err != nil || host != a.Host || a.Agent == "" || a.Port < 1 || a.Port > 65535 {
			return nil, bad("got an approval for agent %q, host %q, port %d", a.Agent, a.Host, a.Port)
		}
		if _, twice := out[a.key()]; twice {
			return nil, bad("%s port %d for %s stands there twice", a.Host, a.Port, a.Agent)
		}
		out[a.key()] = a
	}
	return out, nil
}

// remember writes the approval to disk, and only then uses it.
func (h *Holds) remember(x *hold, a Answer) error {
	n := Approval{x.q.agent, x.q.policy, x.q.host, x.q.port, a.Operator, time.Now().UTC().Truncate(time.Second)}
	return h.save(func(m map[standing]Approval) { m[n.key()] = n })
}

// save applies change to a copy of the approvals, writes it, then uses it.
func (h *Holds) save(change func(map[standing]Approval)) error {
	h.saving.Lock()
	defer h.saving.Unlock()
	h.mu.Lock()
	next := maps.Clone(h.always)
	h.mu.Unlock()
	change(next)
	b, err := json.MarshalIndent(approvalsFile{1, sorted(next)}, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(h.c.File, append(b, '\n'), 0o600); err != nil {
		return err
	}
	h.mu.Lock()
	h.always = next
	h.mu.Unlock()
	return nil
}

// sorted gives the file one order, so that equal approvals are equal bytes.
func sorted(m map[standing]Approval) []Approval {
	return slices.SortedFunc(maps.Values(m), func(a, b Approval) int {
		return strings.Compare(fmt.Sprint(a.Agent, "\x00", a.Policy, "\x00", a.Host, "\x00", a.Port), fmt.Sprint(b.Agent, "\x00", b.Policy, "\x00", b.Host, "\x00", b.Port))
	})
}

// Approvals lists the answers for always.
func (h *Holds) Approvals() []Approval {
	h.mu.Lock()
	defer h.mu.Unlock()
	return sorted(h.always)
}

// Revoke takes back an answer for always, or one for the session. Connections
// that it let in stay open until Proxy.Recheck.
func (h *Holds) Revoke(ctx context.Context, agent, host string, port int, operator string) error {
	if strings.TrimSpace(operator) == "" {
		return fmt.Errorf("%w: got no operator, want the name of who revokes", ErrAnswer)
	}
	k := key{agent, host, port}
	match := func(s standing) bool { return s.agent == agent && s.host == host && s.port == port }
	h.mu.Lock()
	_, session := h.session[k]
	always := slices.ContainsFunc(slices.Collect(maps.Keys(h.always)), match)
	h.mu.Unlock()
	if !session && !always {
		return fmt.Errorf("%w: no approval for %s to %s port %d", ErrNoPending, agent, host, port)
	}
	err := h.c.Recorder.Record(ctx, ledger.Record{
		Kind: ledger.KindApproval, Verdict: ledger.Denied, Agent: agent, Reason: "approval.revoked", Host: host, Port: port,
		Detail: fmt.Sprintf("%s took back the approval of %s port %d", operator, host, port), Attrs: map[string]any{"operator": operator},
	})
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	h.mu.Lock()
	delete(h.session, k)
	h.mu.Unlock()
	if !always {
		return nil
	}
	return h.save(func(m map[standing]Approval) {
		maps.DeleteFunc(m, func(s standing, _ Approval) bool { return match(s) })
	})
}
