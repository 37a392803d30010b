package egress

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

const (
	dnsTTL   = 10  // seconds
	maxQuery = 512 // bytes; a question fits
)

// maxQuestions bounds how many an agent gets answered in a second; a whole
// package manager asks a tenth of that.
const maxQuestions = 2000

// serveDNS answers one question after the other; a flood only slows itself.
func (b *box) serveDNS(c net.PacketConn) {
	buf := make([]byte, maxQuery+1)
	var rate seconds
	for {
		select {
		case <-time.After(rate.turn(time.Now(), maxQuestions)):
		case <-b.ctx.Done():
			return
		}
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if b.ctx.Err() != nil || !temporary(err) {
				return
			}
			continue
		}
		if out := b.answer(buf[:n]); out != nil {
			_, _ = c.WriteTo(out, from) // a lost answer is asked for again
		}
	}
}

// seconds counts turns by the second of the clock. One goroutine uses it.
type seconds struct {
	at time.Time
	n  int
}

// turn takes a turn and says how long to wait before using it.
func (s *seconds) turn(now time.Time, limit int) time.Duration {
	if d := now.Sub(s.at); d < 0 || d >= time.Second {
		s.at, s.n = now, 0
	}
	if s.n++; s.n <= limit {
		return 0
	}
	wait := s.at.Add(time.Second).Sub(now)
	s.at, s.n = now.Add(wait), 1
	return wait
}

// answer builds the reply to one packet, nil for what is no question.
// Nothing of it is ever asked outside.
func (b *box) answer(q []byte) (out []byte) {
	defer func() {
		if recover() != nil {
			out = nil // a fault in the parser is this question's, not every sandbox's
		}
	}()
	var p dnsmessage.Parser
	h, err := p.Start(q)
	if err != nil || h.Response || len(q) > maxQuery {
		return nil
	}
	qs, err := p.AllQuestions()
	if err != nil || len(qs) != 1 || h.OpCode != 0 {
		return reply(h, nil, dnsmessage.RCodeFormatError, netip.Addr{})
	}
	code, addr := b.resolve(qs[0])
	return reply(h, qs, code, addr)
}

// reply packs an answer; a is its one address, if valid. Records of authority
// are left out: negative answers are then not cached, and a reload counts at once.
func reply(h dnsmessage.Header, qs []dnsmessage.Question, code dnsmessage.RCode, a netip.Addr) []byte {
	m := dnsmessage.Message{Questions: qs, Header: dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
	}}
	if a.IsValid() {
		rh := dnsmessage.ResourceHeader{Name: qs[0].Name, Class: dnsmessage.ClassINET, TTL: dnsTTL}
		var body dnsmessage.ResourceBody = &dnsmessage.AAAAResource{AAAA: a.As16()}
		if a.Is4() {
			body = &dnsmessage.AResource{A: a.As4()}
		}
		m.Answers = []dnsmessage.Resource{{Header: rh, Body: body}}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// resolve decides a question: an IPv4 address for any proper name, no data for
// other types (AAAA too: one address family is enough to carry a name).
func (b *box) resolve(q dnsmessage.Question) (dnsmessage.RCode, netip.Addr) {
	if q.Class != dnsmessage.ClassINET {
		return dnsmessage.RCodeRefused, netip.Addr{}
	}
	host, err := policies.NormalizeHost(q.Name.String())
	if err != nil || strings.HasSuffix(host, ".arpa") {
		return dnsmessage.RCodeNameError, netip.Addr{}
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return dnsmessage.RCodeNameError, netip.Addr{} // an address is not a name
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return dnsmessage.RCodeSuccess, loopback(q.Type)
	}
	if d := denyAnyPort(b.agent.Policy()).Decide(policies.Request{Action: policies.Connect, Host: host, Port: 443}); d.Verdict == policies.Deny && host != InferenceHost {
		b.refusedName(host, d.Reason, d.Rule)
		return dnsmessage.RCodeNameError, netip.Addr{}
	}
	if q.Type != dnsmessage.TypeA {
		return dnsmessage.RCodeSuccess, netip.Addr{}
	}
	a, ok := b.names.addr(host)
	if !ok {
		b.refusedName("", "dns.flood", "more than 300 new names in a minute")
		return dnsmessage.RCodeRefused, netip.Addr{}
	}
	return dnsmessage.RCodeSuccess, a
}

func loopback(t dnsmessage.Type) netip.Addr {
	switch t {
	case dnsmessage.TypeA:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case dnsmessage.TypeAAAA:
		return netip.IPv6Loopback()
	}
	return netip.Addr{}
}

// denyAnyPort is p reduced to the deny rules that hold for every port: only
// those make the name itself refused.
func denyAnyPort(p *policies.Policy) *policies.Policy {
	if p == nil {
		return nil // decides: deny
	}
	q := *p
	q.Network = policies.Network{Default: policies.Hold, Deny: slices.DeleteFunc(slices.Clone(p.Network.Deny), func(r policies.HostRule) bool { return len(r.Ports) > 0 })}
	return &q
}

// refusedName records a refused name, each at most once a minute and all of
// them at a pace: a loop of questions must not fill the ledger. The wait holds
// up the agent's further questions, which the kernel queues or drops.
func (b *box) refusedName(host, reason, detail string) {
	if !b.said.first(host + " " + reason) {
		return
	}
	b.pace(&b.refused)
	ctx, cancel := context.WithTimeout(b.ctx, recordTimeout)
	defer cancel()
	_ = b.proxy.c.Recorder.Record(ctx, ledger.Record{ // refused anyway
		Kind: ledger.KindDNS, Verdict: ledger.Denied, Agent: b.agent.ID, Policy: b.digest(), Reason: reason, Detail: detail, Host: host,
		Process: ledger.Process{UID: b.agent.UID},
	})
}

// once remembers for a minute what was said.
type once struct{ at map[string]time.Time } // one goroutine uses it

func (o *once) first(s string) bool {
	if t, ok := o.at[s]; ok && time.Since(t) < time.Minute {
		return false
	}
	if o.at == nil || len(o.at) >= maxNames {
		o.at = map[string]time.Time{}
	}
	o.at[s] = time.Now()
	return true
}
