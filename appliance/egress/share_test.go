package egress

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/policies"
)

// neighbour is another agent's sandbox at the same proxy.
func (l *lab) neighbour(id string) *lab {
	l.t.Helper()
	n := &lab{t: l.t, book: l.book, holds: l.holds, proxy: l.proxy, ns: newNetns(l.t), pol: l.policy()}
	n.agent = Agent{ID: id, UID: l.agent.UID, Policy: n.policy}
	n.attach()
	l.t.Cleanup(func() {
		if err := n.at.Close(); err != nil {
			l.t.Errorf("close: %v", err)
		}
	})
	return n
}

// inside is the box of the lab's agent.
func (l *lab) inside() *box {
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	for b := range l.proxy.boxes {
		if b.agent.ID == l.agent.ID {
			return b
		}
	}
	l.t.Fatal("no box")
	return nil
}

// TestShares: an agent that has taken all that it may of this process, its
// memory, requests, connections, new names and turns of refusals, takes
// nothing from another one.
func TestShares(t *testing.T) {
	l, _ := inspectLab(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200) })
	n := l.policy().Network
	n.Allow = append(n.Allow, policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{7000}})
	l.network(n)
	other := l.neighbour("a2")
	mine, its := l.client(true), other.client(true)
	if st, body, _ := do(t, mine, "GET", "https://a.example/", ""); st != 200 {
		t.Fatalf("before: %d %s", st, body)
	}

	// Both ends of all those connections are this process's, in the appliance one is.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 14, Max: 1 << 14}); err != nil {
		t.Logf("descriptors: %v", err)
	}
	b := l.inside()
	if !b.room.bytes.TryAcquire(allBodies) || !b.room.outs.TryAcquire(maxOutwards-1) {
		t.Fatal("the room is taken already")
	}
	defer b.room.bytes.Release(allBodies)
	defer b.room.outs.Release(maxOutwards - 1)
	if st, body, _ := do(t, mine, "POST", "https://a.example/", "a body"); st != 503 {
		t.Errorf("without room: %d %s, want 503", st, body)
	}
	for i := range 2 * maxFresh { // and refusals that wait for minutes
		b.names.addr(fmt.Sprintf("n%d.example", i))
		b.denials.Turn(time.Now(), 1)
	}
	for range maxConns + 8 {
		c, err := l.tryConnect("tcp", "192.0.2.1:7000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for end := time.Now().Add(time.Minute); len(b.slots) < maxConns; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d connections", len(b.slots), maxConns)
		}
	}
	for range 3 {
		if st, body, _ := do(t, its, "POST", "https://a.example/", strings.Repeat("x", 1<<20)); st != 200 {
			t.Errorf("another agent: %d %s, want 200", st, body)
		}
		its.CloseIdleConnections() // a new connection the next time
	}
}
