package wizard

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/muesli/cancelreader"
	"golang.org/x/sys/unix"
)

// keyboard reads a terminal for all pages of the wizard. Each page is a
// program of the terminal library, which leaves a goroutine in Read when it
// ends; reading the terminal itself, that goroutine would swallow what is typed
// first on the next page. So one pump reads, and each page gets a reader that
// ends with it.
type keyboard struct {
	r    cancelreader.CancelReader
	fd   int
	was  unix.Termios
	data chan []byte
	done chan struct{} // closed when the pump has ended
	stop chan struct{}

	mu   sync.Mutex // guards rest
	rest []byte     // read from the terminal and not handed out yet
}

// openKeyboard takes the terminal f: keys come as they are typed, without
// echo, and ^C as a key. Output stays as it is, so that ordinary text can be
// written between pages.
func openKeyboard(f *os.File) (*keyboard, error) {
	k := &keyboard{fd: int(f.Fd()), data: make(chan []byte), done: make(chan struct{}), stop: make(chan struct{})}
	t, err := unix.IoctlGetTermios(k.fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if k.r, err = cancelreader.NewReader(f); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	k.was = *t
	t.Iflag &^= unix.ICRNL | unix.IXON | unix.ISTRIP | unix.INLCR | unix.IGNCR
	t.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(k.fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	go k.pump()
	return k, nil
}

func (k *keyboard) pump() {
	defer close(k.done)
	for {
		b := make([]byte, 256)
		n, err := k.r.Read(b)
		if err != nil {
			return
		}
		select {
		case k.data <- b[:n]:
		case <-k.stop:
			return
		}
	}
}

// Close gives the terminal back as it was.
func (k *keyboard) Close() error {
	close(k.stop)
	if k.r.Cancel() {
		<-k.done
	}
	k.r.Close()
	return unix.IoctlSetTermios(k.fd, unix.TCSETS, &k.was)
}

// settle is how long the library gets after an Enter to move on before it
// hears of the next key: it moves by messages to itself, so keys that come in
// one burst (pasted, or typed ahead on a slow line) would still land in the
// field that was just left, behind its validation. On a machine that is slower
// than that they may still; the plan that is shown at the end is what counts.
var settle = 150 * time.Millisecond // tests on a loaded machine give it more

// page returns a reader for one page.
func (k *keyboard) page() *pageReader { return &pageReader{k: k, end: make(chan struct{})} }

type pageReader struct {
	k     *keyboard
	enter bool // the last key handed out was Enter; only Read uses it
	end   chan struct{}
	once  sync.Once
}

// Read ends with io.EOF when the page or the terminal does. What the page did
// not read stays for the next one.
func (p *pageReader) Read(b []byte) (int, error) {
	if p.enter {
		select {
		case <-p.end:
			return 0, io.EOF
		case <-time.After(settle):
		}
	}
	p.k.mu.Lock()
	if len(p.k.rest) == 0 {
		p.k.mu.Unlock()
		var got []byte
		select {
		case got = <-p.k.data:
		case <-p.end:
			return 0, io.EOF
		case <-p.k.done:
			return 0, io.EOF
		}
		p.k.mu.Lock()
		p.k.rest = append(p.k.rest, got...)
	}
	defer p.k.mu.Unlock()
	select {
	case <-p.end: // it ended while we waited: not ours any more
		return 0, io.EOF
	default:
	}
	n := len(p.k.rest)
	if i := bytes.IndexByte(p.k.rest, '\r'); i >= 0 {
		n = i + 1
	}
	n = copy(b, p.k.rest[:n])
	p.enter = n > 0 && b[n-1] == '\r'
	p.k.rest = p.k.rest[n:]
	return n, nil
}

// Close ends the page.
func (p *pageReader) Close() error {
	p.once.Do(func() { close(p.end) })
	return nil
}
