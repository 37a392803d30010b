package appliance

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
)

// handleExec runs a program inside a sandbox and connects the client to it.
func (a *Appliance) handleExec(w http.ResponseWriter, r *http.Request) {
	ag, box, err := a.running(r.PathValue("name"))
	if err != nil {
		refuse(w, err)
		return
	}
	var q control.ExecRequest
	if err := decode(r, &q); err != nil {
		refuse(w, err)
		return
	}
	if len(q.Args) == 0 {
		refuse(w, control.Errorf("invalid", "no program named; want a path inside the sandbox, such as /bin/sh"))
		return
	}
	err = a.log.Record(r.Context(), ledger.Record{
		Kind: ledger.KindLifecycle, Verdict: ledger.Allowed, Agent: ag.Name, Policy: ag.digest(),
		Reason: "agent.connect", Path: q.Args[0], Detail: "an operator runs a program in the sandbox",
		Attrs: map[string]any{"args": q.Args, "tty": q.TTY},
	})
	if err != nil {
		refuse(w, err)
		return
	}
	conn, br, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, err)
		return
	}
	defer conn.Close()
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: clawbox-exec\r\n\r\n")
	session(conn, br.Reader, box, q)
}

// session runs one program and carries its streams until it ends or the
// client goes away, which ends the program.
func session(conn io.Writer, in io.Reader, box *sandbox.Box, q control.ExecRequest) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fw := control.NewFrameWriter(conn)
	pr, pw := io.Pipe()
	defer pr.Close()
	sizes := make(chan sandbox.Size, 1)
	if q.Rows > 0 {
		sizes <- sandbox.Size{Rows: q.Rows, Cols: q.Cols}
	}
	go func() {
		defer cancel()
		readInput(in, pw, sizes)
	}()
	// A client that hangs up while its input waits is noticed by writing to it.
	go func() {
		defer cancel()
		for fw.Send(control.FrameStdout, nil) == nil && ctx.Err() == nil {
			time.Sleep(time.Second)
		}
	}()
	code, err := box.Exec(ctx, sandbox.ExecSpec{
		Args: q.Args, Env: q.Env, TTY: q.TTY, Stdin: pr,
		Stdout: fw.Stream(control.FrameStdout), Stderr: fw.Stream(control.FrameStderr), Resize: sizes,
	})
	if err != nil {
		fw.Send(control.FrameError, []byte(err.Error()))
		return
	}
	fw.Send(control.FrameExit, binary.BigEndian.AppendUint32(nil, uint32(int32(code))))
}

// readInput serves the client's frames until the connection ends.
func readInput(r io.Reader, stdin *io.PipeWriter, sizes chan<- sandbox.Size) {
	defer stdin.Close()
	for {
		t, p, err := control.ReadFrame(r)
		if err != nil {
			return
		}
		switch t {
		case control.FrameStdin:
			stdin.Write(p)
		case control.FrameStdinEOF:
			stdin.Close()
		case control.FrameResize:
			if len(p) == 4 {
				resize(sizes, sandbox.Size{Rows: binary.BigEndian.Uint16(p), Cols: binary.BigEndian.Uint16(p[2:])})
			}
		}
	}
}

// resize hands over a size unless the program is still busy with the last.
func resize(sizes chan<- sandbox.Size, s sandbox.Size) {
	select {
	case sizes <- s:
	default:
	}
}
