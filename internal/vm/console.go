package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Console is the operator's place at a machine: what its serial console shows,
// and a keyboard.
type Console struct {
	conn net.Conn
	mu   sync.Mutex
	left []byte // shown, and not awaited yet
	all  bytes.Buffer
}

// Sit connects to the console. What was shown before is in Machine.Console.
func (m *Machine) Sit() (*Console, error) {
	conn, err := net.Dial("unix", m.path("keys"))
	if err != nil {
		return nil, err
	}
	c := &Console{conn: conn}
	go c.collect()
	return c, nil
}

func (c *Console) collect() {
	b := make([]byte, 4096)
	for {
		n, err := c.conn.Read(b)
		c.mu.Lock()
		c.left = append(c.left, b[:n]...)
		c.all.Write(b[:n])
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Type presses keys: text as it is, "\r" for Enter, "\x1b[B" for arrow down.
func (c *Console) Type(keys string) error {
	_, err := io.WriteString(c.conn, keys)
	return err
}

// Await waits until text is shown that no call before has seen, and gives what
// was shown up to it.
func (c *Console) Await(ctx context.Context, text string) (string, error) {
	for {
		c.mu.Lock()
		i := bytes.Index(c.left, []byte(text))
		if i >= 0 {
			before := string(c.left[:i+len(text)])
			c.left = c.left[i+len(text):]
			c.mu.Unlock()
			return before, nil
		}
		shown := string(c.left)
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", errors.Join(fmt.Errorf("the console does not show %q, but %q", text, shown), context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Shown is all that was shown since Sit.
func (c *Console) Shown() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all.String()
}

// Close leaves the console.
func (c *Console) Close() error { return c.conn.Close() }
