package egress

import (
	"context"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// record writes a refusal and says whether it could.
func (c *conn) record(why *refusal, attrs map[string]any) bool {
	return c.write(ledger.Denied, why.reason, why.detail, attrs)
}

// closing records the end. Both sides are closed already, or should be.
func (c *conn) closing(start time.Time, attrs map[string]any) {
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	reason := "net.closed"
	if ended != nil {
		reason = ended.reason
	}
	attrs["duration_ms"] = time.Since(start).Milliseconds()
	c.box.later(c.entry(ledger.Allowed, reason, "", attrs))
}

// write records what happened to the connection and says whether it could.
func (c *conn) write(v ledger.Verdict, reason, detail string, attrs map[string]any) bool {
	return c.box.record(c.entry(v, reason, detail, attrs)) == nil
}

// entry is a record about the connection.
func (c *conn) entry(v ledger.Verdict, reason, detail string, attrs map[string]any) ledger.Record {
	as := map[string]any{"conn": c.id}
	for k, x := range attrs {
		if x != "" {
			as[k] = x
		}
	}
	return ledger.Record{
		Time: time.Now(), Kind: ledger.KindConnect, Verdict: v, Agent: c.box.agent.ID, Policy: c.box.digest(), Reason: reason, Detail: detail,
		Process: c.proc, Host: c.host, Port: c.port, Attrs: as,
	}
}

// linger is how long the record of an end waits for company. Each commit of
// the ledger is a flush of the disk: an end that had one of its own would make
// the next connection wait for it.
const linger = 2 * time.Millisecond

// ends are records of what is over, which the next record of the sandbox takes
// along.
type ends struct {
	mu   sync.Mutex // guards the rest
	rs   []ledger.Record
	told chan struct{} // closed when rs are durable, or can't be
}

// take gives what waits, and the channel to close when it is told.
func (e *ends) take() ([]ledger.Record, chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs, told := e.rs, e.told
	e.rs, e.told = nil, nil
	return rs, told
}

// later records r within linger, and returns when it is durable: until then
// the connection keeps its place among those of the sandbox.
func (b *box) later(r ledger.Record) {
	if b.ctx.Err() != nil {
		_ = b.record(r)
		return
	}
	e := &b.ends
	e.mu.Lock()
	if e.told == nil {
		e.told = make(chan struct{})
		time.AfterFunc(linger, func() { _ = b.record() })
	}
	e.rs = append(e.rs, r)
	told := e.told
	e.mu.Unlock()
	<-told
}

// record returns when rs, and before them what waits, are durable.
func (b *box) record(rs ...ledger.Record) error {
	return b.recordBy(b.proxy.c.Recorder.Record, rs...)
}

// Prompt is a Recorder that lets nobody wait for longer than the record takes,
// where Record may slow a sandbox down that causes many.
type Prompt interface {
	RecordNow(ctx context.Context, rs ...ledger.Record) error
}

// recordNow is record for what an operator causes.
func (b *box) recordNow(rs ...ledger.Record) error {
	if p, ok := b.proxy.c.Recorder.(Prompt); ok {
		return b.recordBy(p.RecordNow, rs...)
	}
	return b.record(rs...)
}

func (b *box) recordBy(write func(context.Context, ...ledger.Record) error, rs ...ledger.Record) error {
	before, told := b.ends.take()
	if told != nil {
		defer close(told)
	}
	if rs = append(before, rs...); len(rs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	return write(ctx, rs...)
}
