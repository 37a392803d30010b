package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by a Log after Close.
var ErrClosed = errors.New("ledger is closed")

// showEvery is how far the checkpoint file may lag behind the wal.
const showEvery = time.Second

// Log is the one writer of a log. Its methods are safe for concurrent use.
type Log struct {
	host string // device name in the events
	dirs *os.File
	w    writer // the commit goroutine's, while it runs

	mu     sync.Mutex // guards what follows
	queue  []*batch
	head   Head
	err    error // sticky: the first failed write, or ErrClosed
	closed bool

	wake chan struct{} // something is queued, or closed is set
	done chan struct{} // the commit goroutine has ended
}

// batch is one call of Append on its way through the commit goroutine.
type batch struct {
	entries [][]byte
	first   int64
	left    int // entries not yet durable
	answer  chan error
}

// Create makes an empty log in dir, which must not exist or be empty, and
// opens it. It appears whole or not at all.
func Create(dir string, s note.Signer) (*Log, error) {
	dir = filepath.Clean(dir)
	if es, err := os.ReadDir(dir); err == nil && len(es) > 0 {
		return nil, fmt.Errorf("create ledger: %s is not empty (it holds %s): open it, or choose another directory", dir, es[0].Name())
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	h, err := signHead(s, &peaks{}, 0)
	if err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	cp, err := h.publish(s)
	if err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	if err := build(dir, cp, newWal(h)); err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	lock, err := lockDir(dir, unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	w := writer{disk: &osDisk{dir: dir}, signer: s, most: walEntries, tiles: hashes{dir: dir}, head: h, made: map[string]bool{}}
	w.used = int64(len(newWal(h)))
	w.laid = w.used
	return start(w, lock), nil
}

// build writes a new log beside dir and renames it into place.
func build(dir string, checkpoint, wal []byte) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".ledger-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // nothing is left there after the rename
	if err := writeFile(filepath.Join(tmp, checkpointFile), checkpoint); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(tmp, walFile), wal); err != nil {
		return err
	}
	if err := flushDir(tmp); err != nil {
		return err
	}
	// rename(2) takes the place of an empty directory; os.Rename refuses to.
	if err := unix.Rename(tmp, dir); err != nil {
		return err
	}
	return flushDir(filepath.Dir(dir))
}

func start(w writer, lock *os.File) *Log {
	host, _ := os.Hostname() // without a name the events just don't carry one
	l := &Log{
		host: host, dirs: lock, w: w, head: w.head,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go l.run()
	return l
}

// Record appends rs and returns when all of them are durable. After a failed
// write every later call fails too, until the log is opened again. When ctx
// ends first, the records may or may not have become part of the log.
func (l *Log) Record(ctx context.Context, rs ...Record) error {
	_, err := l.Append(ctx, rs...)
	return err
}

// Append is Record, and returns the index of the first of rs; the others
// follow it without a gap.
func (l *Log) Append(ctx context.Context, rs ...Record) (int64, error) {
	if len(rs) == 0 {
		return 0, errors.New("append to ledger: no record given")
	}
	buf, _ := buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	es, err := l.encode(buf, rs)
	if err != nil {
		return 0, fmt.Errorf("append to ledger: %w", err)
	}
	b := &batch{entries: es, left: len(rs), answer: make(chan error, 1)}
	if err := l.enqueue(ctx, b); err != nil {
		return 0, fmt.Errorf("append to ledger: %w", err)
	}
	select {
	case err := <-b.answer:
		if err == nil && cap(*buf) <= maxKept { // the writer has its own copy
			buffers.Put(buf)
		}
		return b.first, err
	case <-ctx.Done():
		return 0, fmt.Errorf("append to ledger: %w", ctx.Err())
	}
}

// encode makes the entries, in the memory of buf or in what takes its place.
func (l *Log) encode(buf *[]byte, rs []Record) ([][]byte, error) {
	enc, now := newEncoder(l.host), time.Now()
	b, ends := slices.Grow((*buf)[:0], usual*len(rs)), make([]int, len(rs))
	var r Record // one for all, which the encoder sees
	for i := range rs {
		if r = rs[i]; r.Time.IsZero() {
			r.Time = now
		}
		var err error
		if b, err = enc.append(b, &r); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		ends[i] = len(b)
	}
	es, at := make([][]byte, len(rs)), 0
	for i, end := range ends {
		es[i], at = b[at:end:end], end
	}
	*buf = b
	return es, nil
}

// buffers are *[]byte, each for one Append; maxKept is the largest kept, in bytes.
var buffers sync.Pool

const maxKept = 4 << 20

// usual is about how many bytes an event takes.
const usual = 1100

func (l *Log) enqueue(ctx context.Context, b *batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.queue = append(l.queue, b)
	l.signal()
	return nil
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default: // a signal is waiting already
	}
}

// Head is the last durable state.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Err says why the log takes no more records, or nil. A health check asks it.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close finishes what is queued, brings the checkpoint file up to date and
// lets the directory go. It returns the error that stopped the log, if any.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.closed = true
	failed := l.err
	if failed == nil {
		l.err = ErrClosed
	}
	l.signal()
	l.mu.Unlock()
	<-l.done
	if err := l.Err(); failed == nil && !errors.Is(err, ErrClosed) {
		failed = err
	}
	if d, ok := l.w.disk.(io.Closer); ok {
		failed = errors.Join(failed, d.Close())
	}
	return errors.Join(failed, l.dirs.Close())
}

// run is the commit goroutine.
func (l *Log) run() {
	defer close(l.done)
	show := time.NewTimer(showEvery)
	defer show.Stop()
	for {
		select {
		case <-l.wake:
		case <-show.C:
			show.Reset(showEvery)
			l.keep(l.w.publish)
		}
		bs, closed := l.take()
		l.commitAll(bs)
		if closed {
			l.keep(l.w.publish)
			l.keep(l.w.tidy)
			return
		}
	}
}

func (l *Log) take() ([]*batch, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bs := l.queue
	l.queue = nil
	return bs, l.closed
}

// commitAll writes the batches, as many entries a commit as fit, and answers
// each batch as soon as its last entry is durable. The rotation comes after
// the answers, so that only the next batch waits for it.
func (l *Log) commitAll(bs []*batch) {
	var es [][]byte
	for _, b := range bs {
		es = append(es, b.entries...)
	}
	for len(es) > 0 {
		at, n := l.w.head.Size, 0
		if l.keep(func() (err error) { n, err = l.w.commit(es); return err }) != nil {
			break
		}
		l.mu.Lock()
		l.head = l.w.head
		l.mu.Unlock()
		es, bs = es[n:], answer(bs, at, n)
		if l.w.due() && l.keep(l.w.rotate) != nil {
			break
		}
	}
	for _, b := range bs {
		b.answer <- fmt.Errorf("append to ledger: %w", l.Err())
	}
}

// answer credits n durable entries from index at on to bs, in order, and
// returns the batches that still wait for some of theirs.
func answer(bs []*batch, at int64, n int) []*batch {
	for n > 0 {
		b := bs[0]
		if b.left == len(b.entries) {
			b.first = at
		}
		k := min(n, b.left)
		b.left -= k
		n -= k
		at += int64(k)
		if b.left > 0 {
			break
		}
		b.answer <- nil
		bs = bs[1:]
	}
	return bs
}

// keep runs a write unless one has failed before, and keeps its error.
func (l *Log) keep(f func() error) error {
	if err := l.Err(); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	err := f()
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = fmt.Errorf("ledger stopped, open it again: %w", err)
	return l.err
}
