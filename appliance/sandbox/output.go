package sandbox

import (
	"io"
	"sync"
	"time"
)

// An agent's output passes through the daemon, so a flood of it would cost
// everybody. More than outputSpan bytes in each span of time wait, and the
// agent with them, as soon as its pipe is full: 4 MiB a second.
const (
	outputSpan = 400 << 10
	span       = 100 * time.Millisecond
)

// late takes an agent's output. Its target becomes known later than it does;
// nothing is written before. It hides what else the target is: package exec
// would hand an *os.File to the child, and a host file must not be open in a
// sandbox.
type late struct {
	mu    sync.Mutex
	w     io.Writer
	began time.Time // of the present span
	n     int       // bytes in it
	waits int64     // since slowed was asked
}

func (t *late) set(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.w = w
}

func (t *late) Write(p []byte) (int, error) {
	w, wait := t.admit(len(p))
	time.Sleep(wait)
	if w == nil {
		return len(p), nil
	}
	return w.Write(p)
}

// admit says where n bytes go, and after how long.
func (t *late) admit(n int) (io.Writer, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if now.Sub(t.began) >= span {
		t.began, t.n = now, 0
	}
	if t.n += n; t.n <= outputSpan {
		return t.w, 0
	}
	t.waits++
	next := t.began.Add(span)
	t.began, t.n = next, 0
	return t.w, next.Sub(now)
}

// slowed says how often output had to wait since the last call.
func (t *late) slowed() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.waits
	t.waits = 0
	return n
}
