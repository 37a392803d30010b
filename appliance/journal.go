package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// journal is the ledger as the supervisor sees it.
type journal interface {
	ledger.Recorder
	Append(ctx context.Context, rs ...ledger.Record) (int64, error)
	Head() ledger.Head
	Err() error // why it takes no more records
	Close() error
}

// What the ledger's service answers. "append" is for every writer, the rest for
// the supervisor.
const (
	callAppend = "append" // Raw records → index of the first
	callHead   = "head"   // → ledger.Head
	callHealth = "health" // fails where the log does
	callWriter = "writer" // writer, one socket: from now on it may write too
	callNames  = "names"  // []string: agents, besides those known already
	// callForeign (name) it asks of the supervisor: end that writer.
	callForeign = "foreign"
)

// writer is who may write to the ledger, and what.
type writer struct {
	Name  string        `json:"name"`
	Kinds []ledger.Kind `json:"kinds"`
}

// writers says which records each service is there to write. One that was
// taken over can't write others: it can't say that an operator approved, or
// that an agent ended.
var writers = map[string][]ledger.Kind{
	"guard":  {ledger.KindExec, ledger.KindFile, ledger.KindKernel, ledger.KindConnect, ledger.KindWeakening},
	"egress": {ledger.KindConnect, ledger.KindDNS, ledger.KindApproval, ledger.KindWeakening},
	"router": {ledger.KindModel},
}

// remoteLog writes to the ledger's service over a connection of its own.
type remoteLog struct {
	c *service.Conn

	mu   sync.Mutex
	head ledger.Head // the last one known
}

// Record splits what doesn't fit one message.
func (l *remoteLog) Record(ctx context.Context, rs ...ledger.Record) error {
	_, err := l.Append(ctx, rs...)
	if errors.Is(err, errTooLarge) && len(rs) > 1 {
		if err = l.Record(ctx, rs[:len(rs)/2]...); err == nil {
			err = l.Record(ctx, rs[len(rs)/2:]...)
		}
	}
	return err
}

var errTooLarge = errors.New("too many records for one message")

func (l *remoteLog) Append(ctx context.Context, rs ...ledger.Record) (at int64, err error) {
	b, err := ledger.MarshalRecords(rs)
	if err == nil && len(b) > service.MaxBody {
		err = fmt.Errorf("%w: %d bytes", errTooLarge, len(b))
	}
	if err == nil {
		err = l.c.Call(ctx, callAppend, service.Raw(b), &at)
	}
	if err != nil {
		return 0, fmt.Errorf("ledger: %w", err)
	}
	return at, nil
}

// Head is the last durable state, or the last that could be learnt.
func (l *remoteLog) Head() ledger.Head {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	var h ledger.Head
	err := l.c.Call(ctx, callHead, nil, &h)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.head = h
	}
	return l.head
}

func (l *remoteLog) Err() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return l.c.Call(ctx, callHealth, nil, nil)
}

func (l *remoteLog) Close() error { return l.c.Close() }

// ledgerConfig is what the ledger's service is started with. The key comes
// this way because its folder is closed to the service.
type ledgerConfig struct {
	Dir string `json:"dir"`
	Key string `json:"key"`
}

// ledgerService owns the log. It has no socket, no capability, and one folder.
type ledgerService struct {
	log *ledger.Log
	// tell is how the supervisor hears of a writer that was taken over.
	tell func(w *writer)

	mu     sync.Mutex // guards the rest
	agents map[string]bool
}

func ledgerRole(s *service.Self, r *service.Request) (service.Handler, error) {
	var c ledgerConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	l, err := openLog(c)
	if err != nil {
		return nil, err
	}
	s.OnEnd(l)
	ls := &ledgerService{log: l, agents: map[string]bool{}, tell: func(w *writer) {
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		if err := s.Conn.Call(ctx, callForeign, w.Name, nil); err != nil {
			s.Conn.Close() // nobody would end that writer: then all end
		}
	}}
	return ls.supervisor, nil
}

// openLog opens an existing log with its key.
func openLog(c ledgerConfig) (*ledger.Log, error) {
	signer, verifier, err := keyPair(c.Key)
	if err != nil {
		return nil, err
	}
	return ledger.Open(c.Dir, signer, verifier)
}

// supervisor answers the supervisor, who may write anything.
func (l *ledgerService) supervisor(ctx context.Context, r *service.Request) (any, error) {
	switch r.Method {
	case callAppend:
		return l.append(ctx, r, nil)
	case callHead:
		return l.log.Head(), nil
	case callHealth:
		return nil, l.log.Err()
	case callWriter:
		return nil, l.admit(r)
	case callNames:
		return nil, l.names(r)
	}
	return nil, fmt.Errorf("the ledger knows no %q", r.Method)
}

func (l *ledgerService) names(r *service.Request) error {
	var names []string
	if err := r.Decode(&names); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names { // what was an agent may still be told of
		l.agents[n] = true
	}
	return nil
}

// admit takes a writer's end of a connection.
func (l *ledgerService) admit(r *service.Request) error {
	var w writer
	if err := r.Decode(&w); err != nil {
		return err
	}
	f, err := r.File(0)
	if err != nil {
		return err
	}
	var c *service.Conn
	ready := make(chan struct{})
	c, err = service.NewConn(f, func(ctx context.Context, r *service.Request) (any, error) {
		<-ready
		if r.Method != callAppend {
			return nil, fmt.Errorf("a writer may not ask for %q", r.Method)
		}
		v, err := l.append(ctx, r, &w)
		if errors.Is(err, errForeign) {
			go func() {
				c.Close()
				l.tell(&w)
			}()
		}
		return v, err
	})
	close(ready)
	return err
}

// errForeign is what a writer gets for a record that isn't its own to write.
var errForeign = errors.New("not this service's record to write")

// append writes records for w; nil is the supervisor. A writer that oversteps
// has been taken over: that is recorded, it is cut off, and the supervisor ends
// it, because what it does from then on nobody would record.
func (l *ledgerService) append(ctx context.Context, r *service.Request, w *writer) (any, error) {
	most := 0
	if w != nil {
		most = maxRecords
	}
	u, _ := unmarshalers.Get().(*ledger.Unmarshaler)
	if u == nil {
		u = new(ledger.Unmarshaler)
	}
	rs, err := u.Records(r.Body, most)
	if err != nil {
		return nil, err
	}
	if len(rs) <= maxRecords { // the log keeps nothing of them
		defer unmarshalers.Put(u)
	}
	if w == nil {
		return l.log.Append(ctx, rs...)
	}
	for i := range rs {
		if !slices.Contains(w.Kinds, rs[i].Kind) {
			alarm := ledger.Record{
				Kind: ledger.KindWeakening, Verdict: ledger.Denied, Reason: "ledger.forged",
				Detail: fmt.Sprintf("service %s tried to write a record of kind %.20q, and is ended", w.Name, rs[i].Kind),
			}
			return nil, errors.Join(fmt.Errorf("%w: kind %.20q by %s", errForeign, rs[i].Kind, w.Name), l.log.Record(ctx, alarm))
		}
	}
	l.stampAll(rs, w)
	return l.log.Append(ctx, rs...)
}

// unmarshalers are *ledger.Unmarshaler, each for one call.
var unmarshalers sync.Pool

func (l *ledgerService) stampAll(rs []ledger.Record, w *writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for i := range rs {
		stamp(&rs[i], w, now, l.agents)
	}
}

// stamp adds to a service's record what the service can't: who wrote it; when
// it came, if that is not about when the record says; and that there was no
// such agent. None of these makes it foreign: a guard that was held up tells
// late, a host's clock is set, an agent is removed before all is told of it.
func stamp(r *ledger.Record, w *writer, now time.Time, known map[string]bool) {
	r.Drop("came")
	r.Drop("agent_unknown")
	r.Put(ledger.Text("writer", w.Name))
	if d := now.Sub(r.Time); !r.Time.IsZero() && (d > late || d < -ahead) {
		r.Put(ledger.Text("came", now.UTC().Format(time.RFC3339Nano)))
	}
	if r.Agent != "" && !known[r.Agent] {
		r.Put(ledger.Flag("agent_unknown"))
	}
}

// How far what a record says of its time may be from when it came.
const (
	ahead = 5 * time.Second
	late  = time.Minute
)

// maxRecords bounds those of one message by a writer.
const maxRecords = 4096

// openWriter makes a service's own way to the ledger: the descriptor is for
// the service.
func (a *Appliance) openWriter(ctx context.Context, name string) (*os.File, error) {
	kinds, ok := writers[name]
	if !ok {
		return nil, fmt.Errorf("service %s has nothing to write to the ledger", name)
	}
	p := a.part("ledger").process()
	if p == nil {
		return nil, fmt.Errorf("service %s: %w", name, errNoLedger)
	}
	ours, theirs, err := service.Pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	if err := p.Conn.Call(ctx, callWriter, writer{name, kinds}, nil, ours); err != nil {
		theirs.Close()
		return nil, fmt.Errorf("ledger: admit %s: %w", name, err)
	}
	return theirs, nil
}

var errNoLedger = errors.New("the ledger's service does not run")

// dialLedger is the service's end of openWriter.
func dialLedger(f *os.File) (*remoteLog, error) {
	c, err := service.NewConn(f, nil)
	if err != nil {
		return nil, err
	}
	return &remoteLog{c: c}, nil
}
