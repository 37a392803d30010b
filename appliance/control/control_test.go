package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	long := bytes.Repeat([]byte("y"), MaxFrame+100)
	if _, err := w.Stream(FrameStdout).Write(long); err != nil {
		t.Fatal(err)
	}
	if err := w.Send(FrameExit, []byte{0, 0, 0, 7}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		typ, p, err := ReadFrame(&b)
		if err != nil {
			t.Fatal(err)
		}
		if typ == FrameExit {
			break
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, long) {
		t.Errorf("got %d bytes back, want %d", len(got), len(long))
	}
	if err := w.Send(FrameStdout, long); err == nil {
		t.Error("a frame over the limit was sent")
	}
	huge := binary.BigEndian.AppendUint32([]byte{byte(FrameStdout)}, MaxFrame+1)
	if _, _, err := ReadFrame(bytes.NewReader(huge)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a frame that announces too much: %v", err)
	}
}

// appliance is a control socket served by h.
func appliance(t *testing.T, h http.Handler) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return Dial(path)
}

func TestRefusals(t *testing.T) {
	c := appliance(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "silent") {
			w.WriteHeader(500)
			return
		}
		w.WriteHeader(404)
		io.WriteString(w, `{"code":"not_found","detail":"no agent is named x"}`)
	}))
	_, err := c.Agent(context.Background(), "x")
	var e *Error
	if !errors.As(err, &e) || e.Code != "not_found" {
		t.Errorf("got %v, want the appliance's refusal", err)
	}
	if _, err := c.Agent(context.Background(), "silent"); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("a refusal without words: %v", err)
	}
	if _, err := Dial(filepath.Join(t.TempDir(), "none")).Status(context.Background()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no socket: %v, want ErrUnreachable", err)
	}
}

// TestSilence: the kernel takes connections for a supervisor that is stopped.
func TestSilence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = Dial(path).within(context.Background(), 50*time.Millisecond, "/v1/status", nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "stopped, or hangs") {
		t.Errorf("got %v, want what to look at", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Dial(path).Status(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestExec: input goes in, output comes out, and the status comes back.
func TestExec(t *testing.T) {
	c := appliance(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		conn, br, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: clawbox-exec\r\n\r\n")
		fw := NewFrameWriter(conn)
		for {
			typ, p, err := ReadFrame(br)
			if err != nil {
				return
			}
			if typ == FrameStdinEOF {
				break
			}
			fw.Send(FrameStdout, bytes.ToUpper(p))
		}
		fw.Send(FrameStderr, []byte("warned"))
		fw.Send(FrameExit, []byte{0, 0, 0, 9})
	}))
	var out, errs bytes.Buffer
	code, err := c.Exec(context.Background(), "a", ExecRequest{Args: []string{"x"}}, Stdio{In: strings.NewReader("hello"), Out: &out, Err: &errs})
	if err != nil || code != 9 || out.String() != "HELLO" || errs.String() != "warned" {
		t.Errorf("status %d, %v, out %q, err %q", code, err, out.String(), errs.String())
	}
}
