package appliance

import (
	"context"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// maxOutput bounds an agent's output file, in bytes. When it is full it
// becomes FILE.1, replacing the previous one: an agent that floods its output
// takes at most twice this much.
const maxOutput = 16 << 20

// outputFile is an agent's bounded output. It is safe for concurrent use.
type outputFile struct {
	path string

	mu sync.Mutex
	f  *os.File
	n  int64
}

func openOutput(path string) (*outputFile, error) {
	o := &outputFile{path: path}
	return o, o.open(os.O_APPEND)
}

func (o *outputFile) open(flag int) error {
	f, err := os.OpenFile(o.path, os.O_CREATE|os.O_WRONLY|flag, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	o.f, o.n = f, st.Size()
	return nil
}

// Write appends p, turning the file over first when it is full.
func (o *outputFile) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n >= maxOutput {
		o.f.Close()
		if err := os.Rename(o.path, o.path+".1"); err != nil {
			return 0, err
		}
		if err := o.open(os.O_TRUNC); err != nil {
			return 0, err
		}
	}
	n, err := o.f.Write(p)
	o.n += int64(n)
	return n, err
}

// Close closes the file.
func (o *outputFile) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.f.Close()
}

// tail reads an output file, across its turning over.
type tail struct {
	path string
	f    *os.File
}

func (t *tail) close() { t.f.Close() }

// copy writes what is there to w.
func (t *tail) copy(w io.Writer) error {
	if _, err := io.Copy(w, t.f); err != nil {
		return err
	}
	mine, err := t.f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(t.path)
	if err != nil || os.SameFile(mine, now) {
		return nil // between two names for a moment: the next call sees the new one
	}
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	io.Copy(w, t.f) // what came before it was turned over
	t.f.Close()
	t.f = f
	_, err = io.Copy(w, f)
	return err
}

// follow goes on copying until done is closed.
func (t *tail) follow(ctx context.Context, w http.ResponseWriter, done <-chan struct{}) {
	rc := http.NewResponseController(w)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for last := false; ; {
		if err := t.copy(w); err != nil || last {
			return
		}
		rc.Flush()
		select {
		case <-ctx.Done():
			return
		case <-done:
			last = true
		case <-tick.C:
		}
	}
}
