package guard

import (
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// opensOf is how many events tell that name was opened.
func opensOf(es []Event, name string) (n int) {
	for _, e := range es {
		if e.Kind == Opened && e.Path == name {
			n++
		}
	}
	return n
}

// pending makes n events that nobody has received.
func pending(t *testing.T, g *Guard, n int) (w *Watch, name string) {
	t.Helper()
	cg := cgroup(t, "")
	name = t.TempDir() + "/file"
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w = audit(t, g, cg)
	if held, err := loop(t, cg, name, n); held != n || err != nil {
		t.Fatalf("%d opened, %v", held, err)
	}
	return w, name
}

// TestCloseDelivers: what happened before Close is received after it.
func TestCloseDelivers(t *testing.T) {
	const n = 4000
	g := load(t)
	_, name := pending(t, g, n)
	closed := make(chan error)
	go func() { closed <- g.Close() }()
	time.Sleep(20 * time.Millisecond) // Close is at work by now, most likely
	var es []Event
	for e := range g.Events() {
		es = append(es, e)
	}
	if err := <-closed; err != nil || g.Lost() != 0 {
		t.Errorf("Close: %v, %d lost", err, g.Lost())
	}
	if got := opensOf(es, name); got != n {
		t.Errorf("received %d events, want %d", got, n)
	}
}

// TestCloseGivesUp: without a receiver Close ends too, and says what is lost.
func TestCloseGivesUp(t *testing.T) {
	const n = 4000
	defer func(d time.Duration) { patience = d }(patience)
	patience = 50 * time.Millisecond
	g := load(t)
	w, name := pending(t, g, n)
	if err := w.Close(); err != nil || g.Lost() != 0 {
		t.Errorf("Watch.Close: %v, %d lost", err, g.Lost())
	}
	if err := g.Close(); err == nil || !strings.Contains(err.Error(), "events are lost") {
		t.Errorf("Close: %v, want the number of lost events", err)
	}
	var es []Event
	for e := range g.Events() {
		es = append(es, e)
	}
	if got := opensOf(es, name) + int(g.Lost()); got < n || len(es) > cap(g.events) {
		t.Errorf("%d received or counted as lost, want at least %d", got, n)
	}
}

// TestWatchCloseWaits: after it everything of the scope was received, by a slow
// receiver too.
func TestWatchCloseWaits(t *testing.T) {
	const n = 4000
	g := load(t)
	w, name := pending(t, g, n)
	got := make(chan int, 1)
	stop := make(chan struct{})
	go func() {
		k := 0
		for {
			select {
			case e, ok := <-g.Events():
				if !ok {
					return
				}
				if e.Path == name && e.Kind == Opened {
					k++
				}
				if k%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			case <-stop:
				got <- k
				stop = nil
			}
		}
	}()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	if k := <-got; k != n {
		t.Errorf("received %d events when Watch.Close returned, want %d", k, n)
	}
}

// TestDecode: an event that is shorter than it says is an error, not a panic.
func TestDecode(t *testing.T) {
	g := LoadNone("only decodes")
	g.names = map[uint64]string{}
	h := witnessHead{Kind: kindOpened, Len: [3]uint16{3, 2}, Mode: 3, Nr: unix.SYS_OPENAT}
	b := append(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)), "/a\x00b\x00"...)
	e, err := g.decode(b, &queue{})
	if err != nil || e.Path != "/a" || e.File != "b" || e.Access != ReadWrite || e.Syscall != "openat" {
		t.Errorf("got %+v, %v", e, err)
	}
	for n := range b {
		if _, err := g.decode(b[:n], &queue{}); err == nil {
			t.Errorf("%d of %d bytes were decoded", n, len(b))
		}
	}
	h.Kind = 9
	if _, err := g.decode(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)), &queue{}); err == nil {
		t.Error("an event of no kind was decoded")
	}
}
