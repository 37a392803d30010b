package service

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// How much a peer may have under way, and how long it may leave what is sent
// to it unread. A caller keeps to maxCalls by waiting; who sends more than
// maxServed is no caller of this package.
const (
	maxCalls  = 512
	maxServed = 1024
	maxSent   = 2 * MaxBody // bytes, by weight; a caller waits
	maxHeld   = 4 * MaxBody // bytes, by weight; who sends more is cut off
	patience  = 10 * time.Second
)

// weight is what a call takes of its receiver until it is answered, in bytes:
// a descriptor counts for as much as a small message.
func (f *frame) weight() int64 { return 512 + int64(len(f.body)) + int64(f.files)<<14 }

// ErrGone says that the other end is no longer there.
var ErrGone = errors.New("the service is gone")

// Error is a refusal by the other end.
type Error struct {
	Code string `json:"code"` // stable; "" for failures without one
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an Error.
func Errorf(code, format string, a ...any) *Error { return &Error{code, fmt.Sprintf(format, a...)} }

// Request is a call from the other end.
type Request struct {
	Method string
	Body   []byte     // JSON, or what the caller gave as Raw
	Files  []*os.File // the handler's from now on
}

// Decode reads the request's body strictly. Numbers in untyped places become
// json.Number, so that integers stay exact.
func (r *Request) Decode(v any) error {
	d := json.NewDecoder(bytes.NewReader(r.Body))
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", r.Method, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%s: data after the message", r.Method)
	}
	return nil
}

// Close closes the descriptors that came with the request.
func (r *Request) Close() { closeAll(r.Files) }

// File takes descriptor i out of the request, or is an error without it.
func (r *Request) File(i int) (*os.File, error) {
	if i >= len(r.Files) || r.Files[i] == nil {
		return nil, fmt.Errorf("%s: got %d descriptors, want number %d", r.Method, len(r.Files), i)
	}
	f := r.Files[i]
	r.Files[i] = nil
	return f, nil
}

// Handler answers calls, each on a goroutine of its own. The value is sent
// back as JSON. Descriptors that it leaves in the request are closed.
type Handler func(ctx context.Context, r *Request) (any, error)

// Conn is one end of a connection. It is safe for concurrent use.
type Conn struct {
	c      *net.UnixConn
	handle Handler
	slots  chan struct{}
	room   *semaphore.Weighted // of what is sent and not answered
	served chan struct{}
	held   atomic.Int64    // weight of the calls being served
	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	closed chan struct{} // the reader has ended, all calls are answered

	write chan struct{} // one frame at a time

	mu    sync.Mutex // guards the rest
	next  uint64
	calls map[uint64]chan frame
	lost  error // why no more calls are taken
}

// NewConn takes over f, a Unix stream socket, and answers calls by h (nil:
// refuses all).
func NewConn(f *os.File, h Handler) (*Conn, error) {
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("service: descriptor is a %T, want a Unix socket", nc)
	}
	c := &Conn{
		c: uc, handle: h, slots: make(chan struct{}, maxCalls), served: make(chan struct{}, maxServed),
		room: semaphore.NewWeighted(maxSent), write: make(chan struct{}, 1),
		closed: make(chan struct{}), calls: map[uint64]chan frame{},
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	go c.read()
	return c, nil
}

// Pair makes two connected sockets for two processes.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("service: socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "service"), os.NewFile(uintptr(fds[1]), "service"), nil
}

// Done is closed when the connection is lost.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err says why the connection was lost, or nil.
func (c *Conn) Err() error { return context.Cause(c.ctx) }

// Close ends the connection, and returns when no handler can begin any more.
func (c *Conn) Close() error {
	c.end(ErrGone)
	<-c.closed
	return nil
}

// Raw is a message in an encoding of its own instead of JSON.
type Raw []byte

// Call sends in as JSON (or as it is: Raw), with descriptors that stay the caller's, and waits
// for the answer in out (nil: nobody cares). An *Error is the other end's
// refusal; ErrGone and the end of ctx leave open whether it acted.
func (c *Conn) Call(ctx context.Context, method string, in, out any, files ...*os.File) error {
	body, err := encode(in)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
	call := frame{kind: kindCall, method: method, body: body, files: uint8(min(len(files), MaxFiles))}
	w := min(call.weight(), maxSent)
	if err := c.room.Acquire(ctx, w); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer c.room.Release(w)
	id, answer, err := c.begin()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer c.finish(id)
	call.id = id
	if err := c.send(ctx, call, files); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case f, ok := <-answer:
		if !ok {
			return fmt.Errorf("%s: %w", method, c.Err())
		}
		return f.result(out)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

func encode(v any) ([]byte, error) {
	if b, ok := v.(Raw); ok {
		return b, nil
	}
	return json.Marshal(v)
}

// result decodes an answer.
func (f *frame) result(out any) error {
	if f.kind == kindError {
		e := new(Error)
		if err := json.Unmarshal(f.body, e); err != nil {
			return fmt.Errorf("an error that can't be read: %w", err)
		}
		return e
	}
	if out == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(f.body))
	d.UseNumber()
	return d.Decode(out)
}

// begin makes room for an answer.
func (c *Conn) begin() (uint64, chan frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return 0, nil, c.lost
	}
	c.next++
	ch := make(chan frame, 1)
	c.calls[c.next] = ch
	return c.next, ch, nil
}

func (c *Conn) finish(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, id)
}

// send writes one frame. What can't be written whole ends the connection, and
// so does a peer that leaves others unread for so long that this one can't
// even begin: no end of ctx has to wait for what was queued before.
func (c *Conn) send(ctx context.Context, f frame, files []*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%d descriptors, at most %d fit", len(files), MaxFiles)
	}
	f.files = uint8(len(files))
	b, err := f.append(make([]byte, 0, head+len(f.method)+len(f.body)))
	if err != nil {
		return err
	}
	if err := c.turn(ctx); err != nil {
		return err
	}
	defer func() { <-c.write }()
	var oob []byte
	return borrow(files, nil, func(fds []int) error {
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		if err := c.put(b, oob); err != nil {
			c.end(fmt.Errorf("%w: %w", ErrGone, err))
			return c.Err()
		}
		return nil
	})
}

// turn waits until it may write.
func (c *Conn) turn(ctx context.Context) error {
	select {
	case c.write <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case c.write <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
		return c.Err()
	case <-t.C:
		c.end(fmt.Errorf("%w: it reads too slowly", ErrGone))
		return c.Err()
	}
}

// borrow calls f with the numbers of files, none of which can be closed
// meanwhile. (*os.File).Fd would make the sockets behind them blocking, here
// and in every other process that has them.
func borrow(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = borrow(files[1:], append(fds, int(fd)), f) })
	return errors.Join(err, inner)
}

func (c *Conn) put(b, oob []byte) error {
	if err := c.c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if len(oob) == 0 {
		_, err := c.c.Write(b)
		return err
	}
	n, _, err := c.c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.c.Write(b[n:])
	}
	return err
}

// end breaks the connection off; the first reason stays.
func (c *Conn) end(why error) {
	c.cancel(why)
	c.c.Close()
}

// read is the connection's one reader.
func (c *Conn) read() {
	in := &inbox{c: c.c}
	err := c.serve(bufio.NewReaderSize(in, 64<<10), in)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	} else {
		err = ErrGone
	}
	c.end(err)
	closeAll(in.files)
	c.mu.Lock()
	c.lost = c.Err()
	for id, ch := range c.calls {
		close(ch)
		delete(c.calls, id)
	}
	c.mu.Unlock()
	close(c.closed)
}

// serve reads frames until one is wrong.
func (c *Conn) serve(r io.Reader, in *inbox) error {
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		files, err := in.take(int(f.files))
		if err != nil {
			return err
		}
		if f.kind != kindCall {
			closeAll(files) // no method answers with descriptors
			if !c.answered(f) {
				return fmt.Errorf("%w: answer %d to no call", errFrame, f.id)
			}
			continue
		}
		if c.held.Add(f.weight()) > maxHeld {
			closeAll(files)
			return fmt.Errorf("calls of more than %d bytes at once", maxHeld)
		}
		select {
		case c.served <- struct{}{}:
			go c.answer(f, files)
		default:
			closeAll(files)
			return fmt.Errorf("more than %d calls at once", maxServed)
		}
	}
}

// answered hands an answer to its caller. A caller that went away is fine, an
// answer to what was never asked is not.
func (c *Conn) answered(f frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.calls[f.id]
	if ok {
		ch <- f // has room: one answer a call
		delete(c.calls, f.id)
	}
	return f.id > 0 && f.id <= c.next
}

// answer runs the handler for one call.
func (c *Conn) answer(f frame, files []*os.File) {
	defer func() { c.held.Add(-f.weight()); <-c.served }()
	r := &Request{Method: f.method, Body: f.body, Files: files}
	defer r.Close()
	v, err := c.run(r)
	out := frame{kind: kindAnswer, id: f.id}
	if err == nil {
		out.body, err = json.Marshal(v)
	}
	if err != nil {
		e := new(Error)
		if !errors.As(err, &e) {
			e = &Error{Text: err.Error()}
		}
		out.kind = kindError
		out.body, _ = json.Marshal(e) // two strings always encode
	}
	if len(out.body) > MaxBody {
		out.kind, out.body = kindError, []byte(`{"code":"","text":"the answer is too large to be sent"}`)
	}
	c.send(c.ctx, out, nil) // a failure has ended the connection
}

// run keeps a fault in one handler from ending the process.
func (c *Conn) run(r *Request) (v any, err error) {
	if c.handle == nil {
		return nil, Errorf("", "%s: calls are not answered here", r.Method)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: internal fault: %v", r.Method, p)
		}
	}()
	return c.handle(c.ctx, r)
}
