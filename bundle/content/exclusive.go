package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writerFile = ".writer" // flock of the one load, build or collection
	gcFile     = ".gc"     // flock: shared by who refers to blobs, exclusive while blobs go
)

// ErrBusy says that somebody else holds what was asked for.
var ErrBusy = errors.New("in use")

// Holder is a process that has a store, or a blob in it, for itself.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

func (h Holder) String() string {
	if h.PID == 0 {
		return "another process"
	}
	return fmt.Sprintf("process %d (%s)", h.PID, h.Command)
}

// BusyError is an ErrBusy that says who holds what.
type BusyError struct {
	What   string
	Holder Holder
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is in use by %s: wait until that has ended, or end it, and try again", e.What, e.Holder)
}

// Is makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// Exclusive makes the caller the store's only loader, builder or collector,
// until release is called or the process ends, in whatever way. While somebody
// else is that, a nil waiting refuses at once with a *BusyError; otherwise
// waiting is told once who that is, and Exclusive waits for its turn or the
// end of ctx. Reading, tagging, Put and uploads need no such turn.
func (s *Store) Exclusive(ctx context.Context, waiting func(Holder)) (release func(), err error) {
	f, err := os.OpenFile(s.path(writerFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	if err := s.turn(ctx, f, waiting); err != nil {
		f.Close()
		return nil, err
	}
	if err := sign(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("content store: %w", err)
	}
	return func() { f.Close() }, nil
}

// turn waits for the flock of f. It polls, as a blocking flock can't be ended
// by a context.
func (s *Store) turn(ctx context.Context, f *os.File, waiting func(Holder)) error {
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return fmt.Errorf("content store: flock %s: %w", f.Name(), err)
		}
		busy := &BusyError{What: "the store " + s.dir, Holder: holder(f)}
		if waiting == nil {
			return busy
		}
		if !told {
			waiting(busy.Holder)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), busy)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// sign writes into a lock file who holds it. It is for people only: the flock
// is the lock, so a text that was left by a dead process does no harm.
func sign(f *os.File) error {
	b, err := json.Marshal(Holder{PID: os.Getpid(), Command: strings.Join(os.Args, " ")})
	if err != nil {
		return err
	}
	if len(b) > 4096 {
		b, _ = json.Marshal(Holder{PID: os.Getpid(), Command: os.Args[0]})
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return err
}

func holder(f io.ReaderAt) (h Holder) {
	b := make([]byte, 8192)
	n, _ := f.ReadAt(b, 0)
	if json.Unmarshal(b[:n], &h) != nil { // being written at this moment
		return Holder{}
	}
	return h
}

// Hold keeps GC from deleting blobs until release is called. Who writes
// something that refers to blobs (a manifest, a tag) holds, sees that they are
// there, writes, and releases.
func (s *Store) Hold() (release func(), err error) {
	release, err = s.flock(gcFile, unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	return release, nil
}
