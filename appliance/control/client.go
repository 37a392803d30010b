package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

// Client talks to one appliance. It is safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// Dial returns a client for the control socket at path. It does not connect
// yet.
func Dial(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.connect(ctx)
	}}
	return c
}

func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: start it with 'clawbox serve' (or 'systemctl start clawbox')", ErrUnreachable, c.socket)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: %s may be opened by root only", ErrUnreachable, c.socket)
	}
	return conn, err
}

// Status asks for the appliance's account of itself.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.look(ctx, "/v1/status", &s)
}

// Agents lists all agents, running and stopped.
func (c *Client) Agents(ctx context.Context) (as []AgentStatus, err error) {
	return as, c.look(ctx, "/v1/agents", &as)
}

// Agent describes one agent.
func (c *Client) Agent(ctx context.Context, name string) (a AgentStatus, err error) {
	return a, c.look(ctx, agentPath(name, ""), &a)
}

// Launch starts an agent and returns once it runs.
func (c *Client) Launch(ctx context.Context, r LaunchRequest) (a AgentStatus, err error) {
	return a, c.call(ctx, "POST", "/v1/agents", r, &a)
}

// Stop stops an agent and returns once it is gone.
func (c *Client) Stop(ctx context.Context, name string, r StopRequest) error {
	return c.call(ctx, "POST", agentPath(name, "/stop"), r, nil)
}

// Remove forgets a stopped agent and deletes its writable files.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", agentPath(name, ""), nil, nil)
}

// SetPolicy reloads the network and inference layers of a running agent.
func (c *Client) SetPolicy(ctx context.Context, name string, r PolicyRequest) (a AgentStatus, err error) {
	return a, c.call(ctx, "PUT", agentPath(name, "/policy"), r, &a)
}

// Approvals lists what waits for an operator.
func (c *Client) Approvals(ctx context.Context) (ps []Pending, err error) {
	h, err := c.Watch(ctx, "")
	return h.Pending, err
}

// Watch lists what waits for an operator as soon as it differs from the
// version given, or after half a minute.
func (c *Client) Watch(ctx context.Context, version string) (h Held, err error) {
	return h, c.within(ctx, watchTime, "/v1/approvals?wait="+url.QueryEscape(version), &h)
}

// Standing lists the answers that stand.
func (c *Client) Standing(ctx context.Context) (ss []Standing, err error) {
	return ss, c.look(ctx, "/v1/approvals/standing", &ss)
}

// Revoke takes back the answer that stands under id, and closes the
// connections that it let in.
func (c *Client) Revoke(ctx context.Context, id, operator string) (s Standing, err error) {
	path := "/v1/approvals/standing/" + url.PathEscape(id) + "?operator=" + url.QueryEscape(operator)
	return s, c.call(ctx, "DELETE", path, nil, &s)
}

// Answer answers a held request.
func (c *Client) Answer(ctx context.Context, id string, r AnswerRequest) error {
	return c.call(ctx, "POST", "/v1/approvals/"+url.PathEscape(id), r, nil)
}

// TellReceipts has the appliance put on its ledger what the installer has left
// there since it started.
func (c *Client) TellReceipts(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/receipts", nil, nil)
}

// Checkpoint returns the ledger's newest signed checkpoint.
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	var b []byte
	return b, c.look(ctx, "/v1/ledger/checkpoint", &b)
}

// Logs copies an agent's output to w; with follow until the agent stops.
func (c *Client) Logs(ctx context.Context, name string, follow bool, w io.Writer) error {
	path := agentPath(name, "/logs")
	if follow {
		path += "?follow=1"
	}
	resp, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// How long to wait for what an appliance that runs answers within seconds, also
// when its services don't, and for what it answers within half a minute.
const (
	lookTime  = 20 * time.Second
	watchTime = time.Minute
)

// look asks for what is answered at once, or not at all: a supervisor that is
// stopped still has connections taken by the kernel.
func (c *Client) look(ctx context.Context, path string, out any) error {
	return c.within(ctx, lookTime, path, out)
}

func (c *Client) within(ctx context.Context, limit time.Duration, path string, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errSilent)
	defer cancel()
	err := c.call(ctx, "GET", path, nil, out)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("%w: %s takes connections and says nothing for %v: its process is stopped, or hangs; look at it with 'systemctl status clawbox', and at its log", ErrUnreachable, c.socket, limit)
	}
	return err
}

var errSilent = errors.New("silence")

func agentPath(name, rest string) string { return "/v1/agents/" + url.PathEscape(name) + rest }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// do sends a request and turns a refusal into an *Error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://appliance"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

func refusal(resp *http.Response) error {
	var e Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&e); err != nil || e.Detail == "" {
		return fmt.Errorf("the appliance answered %s without saying why", resp.Status)
	}
	return &e
}

// Stdio is what an executed program is connected to. Resize may be nil.
type Stdio struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Resize <-chan [2]uint16 // rows, columns
}

// Exec runs a program inside agent name's sandbox and returns its exit
// status.
func (c *Client) Exec(ctx context.Context, name string, r ExecRequest, s Stdio) (int, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	br, err := upgrade(conn, agentPath(name, "/exec"), r)
	if err != nil {
		return 0, err
	}
	fw := NewFrameWriter(conn)
	go sendInput(fw, s)
	return receive(br, s)
}

func upgrade(conn net.Conn, path string, r ExecRequest) (*bufio.Reader, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", "http://appliance"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "clawbox-exec")
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return br, nil
}

func sendInput(fw *FrameWriter, s Stdio) {
	if s.Resize != nil {
		go func() {
			for sz := range s.Resize {
				b := binary.BigEndian.AppendUint16(nil, sz[0])
				fw.Send(FrameResize, binary.BigEndian.AppendUint16(b, sz[1]))
			}
		}()
	}
	if s.In != nil {
		io.Copy(fw.Stream(FrameStdin), s.In)
	}
	fw.Send(FrameStdinEOF, nil)
}

func receive(r io.Reader, s Stdio) (int, error) {
	for {
		t, p, err := ReadFrame(r)
		if err != nil {
			return 0, fmt.Errorf("the appliance ended the session early: %w", err)
		}
		switch t {
		case FrameStdout:
			_, err = s.Out.Write(p)
		case FrameStderr:
			_, err = s.Err.Write(p)
		case FrameError:
			return 0, errors.New(string(p))
		case FrameExit:
			if len(p) != 4 {
				return 0, fmt.Errorf("exit frame of %d bytes, want 4", len(p))
			}
			return int(int32(binary.BigEndian.Uint32(p))), nil
		}
		if err != nil {
			return 0, err
		}
	}
}
