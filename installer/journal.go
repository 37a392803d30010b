package installer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/clawbox/clawbox/internal/durable"
)

// head names what an installation is of.
type head struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Sequence int64  `json:"sequence"`
	Digest   string `json:"digest"`
	Plan     string `json:"plan"`
}

func (h head) String() string {
	return fmt.Sprintf("%s %s (sequence %d, %.19s…)", h.Name, h.Version, h.Sequence, h.Digest)
}

// line is one line of the journal, JSON.
type line struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // begin, start, done, fail, commit
	Step  string    `json:"step,omitempty"`
	Head  *head     `json:"head,omitempty"` // with begin and commit
	Text  string    `json:"text,omitempty"`
}

// history is what the journal's lines add up to.
type history struct {
	open *head           // begun and not committed since
	last *head           // committed last
	done map[string]bool // steps finished since open began, for open's plan
	size int64           // bytes of whole lines
}

// replay reads the journal of installations.
func replay(path string) (history, error) {
	h := history{done: map[string]bool{}}
	var err error
	h.size, err = wholeLines(path, h.apply)
	return h, err
}

// wholeLines hands each line of a journal to apply and returns their size. The
// last line may be torn by a power cut: it has no newline then and counts as
// never written. Anything else that cannot be read is refused, since it would
// mean to guess.
func wholeLines(path string, apply func([]byte) error) (size int64, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("journal: %w", err)
	}
	for n := 1; ; n++ {
		l, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return size, nil
		}
		if err := apply(l); err != nil {
			return size, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		size += int64(len(l)) + 1
		b = rest
	}
}

func (h *history) apply(b []byte) error {
	var l line
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return fmt.Errorf("got a line that is not the journal's: %w; wanted one JSON object; restore the file or start over on a fresh root", err)
	}
	switch l.Event {
	case "begin":
		if l.Head == nil {
			return errors.New("begin without a release")
		}
		if h.open == nil || *h.open != *l.Head {
			h.done = map[string]bool{}
		}
		h.open = l.Head
	case "done":
		h.done[l.Step] = true
	case "commit":
		h.last, h.open, h.done = h.open, nil, map[string]bool{}
	case "start", "fail":
	default:
		return fmt.Errorf("got the event %q; wanted begin, start, done, fail or commit; was it written by a newer installer?", l.Event)
	}
	return nil
}

// journal appends lines; each is durable before append returns.
type journal struct{ f *os.File }

// openJournal continues the file at path after its last whole line.
func openJournal(path string, size int64) (*journal, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	err = f.Truncate(size)
	if err == nil {
		_, err = f.Seek(size, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", path, err), f.Close())
	}
	return &journal{f}, nil
}

func (j *journal) append(l line) error {
	l.Time = time.Now().UTC()
	return j.write(l)
}

func (j *journal) write(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = j.f.Write(append(b, '\n'))
	}
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (j *journal) Close() error { return j.f.Close() }
