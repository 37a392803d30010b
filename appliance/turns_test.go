package appliance

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// TestTurns: one agent's turn waits for that agent only, and all waits for all.
func TestTurns(t *testing.T) {
	var ts turns
	ada := ts.of("ada")
	ts.of("bob")() // does not wait
	var mu sync.Mutex
	var order []string
	note := func(s string) { mu.Lock(); order = append(order, s); mu.Unlock() }
	var wg sync.WaitGroup
	wg.Go(func() { defer ts.of("ada")(); note("ada") })
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		ts.mu.Lock()
		n := ts.one["ada"].asked
		ts.mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody asked for the turn in a minute")
		}
	}
	note("first")
	ada()
	wg.Wait()
	if want := []string{"first", "ada"}; !slices.Equal(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
	if len(ts.one) != 0 {
		t.Errorf("%d turns are kept that nobody has", len(ts.one))
	}
	carol := ts.of("carol")
	wg.Go(func() { defer ts.all()(); note("all") })
	note("carol")
	carol()
	wg.Wait()
	ts.of("carol")()
	if want := []string{"first", "ada", "carol", "all"}; !slices.Equal(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
}

// TestParse: the same text is parsed once, another name for it anew, because
// messages say the name.
func TestParse(t *testing.T) {
	src := []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\n")
	a, err := parse("p.yaml", src)
	must(t, err)
	b, err := parse("p.yaml", slices.Clone(src))
	must(t, err)
	c, err := parse("q.yaml", src)
	must(t, err)
	if a != b || a == c {
		t.Errorf("got %p, %p and %p", a, b, c)
	}
	for range 2 {
		if _, err := parse("p.yaml", []byte("x: 1\n")); err == nil {
			t.Error("no policy was parsed")
		}
	}
	for i := range 2 * maxParsed {
		if _, err := parse(string(rune('a'+i)), src); err != nil {
			t.Fatal(err)
		}
	}
	if len(parsed.by) > maxParsed {
		t.Errorf("%d are kept", len(parsed.by))
	}
}
