package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// The places, in the order of the table.
const (
	host     = "host"
	bwrap    = "bubblewrap"
	runcName = "runc"
	clawbox  = "clawbox"
	audited  = "clawbox, full audit"
)

// lab holds what every measurement needs.
type lab struct {
	dir    string
	root   string
	places map[string]place
	order  []string
	left   []string // what could not be measured, and why
	*boxes

	echo, web net.Listener // on the host
	relay     net.Listener // leads to echo
	open      atomic.Int64 // connections to echo
}

func newLab(ctx context.Context) (l *lab, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "clawbox-bench-")
	if err != nil {
		return nil, err
	}
	l = &lab{dir: dir, root: filepath.Join(dir, "root"), places: map[string]place{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err = os.Chmod(dir, 0o711); err != nil {
		return l, err
	}
	if l.left, err = makeRoot(ctx, l.root); err != nil {
		return l, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "clawbox-launch"), "./cmd/clawbox-launch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return l, fmt.Errorf("building clawbox-launch: %w: %s", err, out)
	}
	if err = l.serve(); err != nil {
		return l, err
	}
	if l.boxes, err = openBoxes(dir, l.root, l.dial); err != nil {
		return l, err
	}
	return l, l.findPlaces(ctx)
}

func (l *lab) close() error {
	var err error
	if l.boxes != nil {
		err = l.boxes.close()
	}
	for _, c := range []net.Listener{l.echo, l.web, l.relay} {
		if c != nil {
			_ = c.Close()
		}
	}
	return errors.Join(err, os.RemoveAll(l.dir))
}

// findPlaces keeps the places in which a first job runs.
func (l *lab) findPlaces(ctx context.Context) error {
	l.places[host], l.places[clawbox], l.places[audited] = bare{l.root}, agents{l.boxes, false}, agents{l.boxes, true}
	if bin, err := exec.LookPath("bwrap"); err != nil {
		l.left = append(l.left, "bubblewrap is not installed")
	} else {
		l.places[bwrap] = bubblewrap{bin, l.root, l.dir}
	}
	if bin, err := exec.LookPath("runc"); err != nil {
		l.left = append(l.left, "runc is not installed")
	} else {
		l.places[runcName] = runc{bin, l.root, l.dir, new(sync.Mutex), new(int)}
	}
	for _, name := range places {
		p, ok := l.places[name]
		if !ok {
			continue
		}
		var out strings.Builder
		err := do(ctx, p, job{argv: []string{"/bin/busybox", "echo", "here"}, out: &out})
		if err == nil && out.String() != "here\n" {
			err = fmt.Errorf("it printed %q", out.String())
		}
		switch {
		case err == nil:
			l.order = append(l.order, name)
		case name == host || name == clawbox || name == audited:
			return fmt.Errorf("%s: %w", name, err)
		default:
			l.left = append(l.left, fmt.Sprintf("%s does not run here: %v", name, err))
		}
	}
	return nil
}

func do(ctx context.Context, p place, j job) error {
	r, err := p.start(ctx, j)
	if err != nil {
		return err
	}
	return r.wait()
}

// serve starts the servers on the host's loopback that connections lead to.
func (l *lab) serve() (err error) {
	if l.echo, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	if l.web, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.echo.Accept()
			if err != nil {
				return
			}
			l.open.Add(1)
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
				l.open.Add(-1)
			}()
		}
	}()
	if l.relay, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	go l.passOn()
	page := []byte(strings.Repeat("x", 1024))
	go func() {
		_ = http.Serve(l.web, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) }))
	}()
	return nil
}

// passOn is the least that stands between two ends of a connection: it takes one,
// makes another, and copies both ways.
func (l *lab) passOn() {
	for {
		c, err := l.relay.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			to, err := net.Dial("tcp", l.echo.Addr().String())
			if err != nil {
				return
			}
			defer to.Close()
			go func() {
				_, _ = io.Copy(to, c)
				_ = to.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(c, to)
		}()
	}
}

// dial leads every address that egress has allowed to the servers here.
func (l *lab) dial(ctx context.Context, network, address string) (net.Conn, error) {
	to := l.echo
	if _, port, _ := net.SplitHostPort(address); port == "80" {
		to = l.web
	}
	return new(net.Dialer).DialContext(ctx, network, to.Addr().String())
}

// facts name the programs that were compared.
func (l *lab) facts() []string {
	var out []string
	for name, args := range map[string][]string{bwrap: {"bwrap", "--version"}, runcName: {"runc", "--version"}} {
		if l.places[name] == nil {
			continue
		}
		b, _ := exec.Command(args[0], args[1:]...).Output()
		line, _, _ := strings.Cut(string(b), "\n")
		out = append(out, line)
	}
	return append(out, l.left...)
}
