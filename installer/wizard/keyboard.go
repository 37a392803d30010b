package wizard

import (
	"fmt"
	"io"
	"os"
	"sync"

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

// page returns a reader for one page.
func (k *keyboard) page() *pageReader { return &pageReader{k: k, end: make(chan struct{})} }

type pageReader struct {
	k    *keyboard
	rest []byte
	end  chan struct{}
	once sync.Once
}

// Read ends with io.EOF when the page or the terminal does.
func (p *pageReader) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		select {
		case p.rest = <-p.k.data:
		case <-p.end:
			return 0, io.EOF
		case <-p.k.done:
			return 0, io.EOF
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Close ends the page.
func (p *pageReader) Close() error {
	p.once.Do(func() { close(p.end) })
	return nil
}
