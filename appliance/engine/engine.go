package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Config says how to run the engine.
type Config struct {
	Binary string    // the engine, absolute
	Dir    string    // laid out by Prepare; every folder above must let UID pass
	Listen string    // loopback address and port, such as 127.0.0.1:11434
	Log    io.Writer // gets the engine's output and this package's notes; nil discards
	// NetNS is the network namespace that the engine runs in, such as NewNetNS
	// makes, where nobody else can reach it; Dial is then the way there. Both
	// nil: the engine listens on this host's loopback.
	NetNS *os.File
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	// UID and GID are what the engine runs as. As root they must not be 0;
	// without root they must be 0, which means this process's own.
	UID, GID int
}

// Pauses between a death and the next start.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
	goodRun    = time.Minute // a run this long starts the pauses anew
	grace      = 5 * time.Second
)

// Engine is a running engine. Its methods may be called from any goroutine.
type Engine struct {
	cfg    Config
	client *http.Client
	stop   context.CancelFunc
	done   chan struct{} // closed when the keeper has ended

	mu   sync.Mutex
	last error // why the latest run ended; nil while the first one lives
	runs int
}

// Start starts the engine and waits until it answers. The context bounds the wait
// only; Close ends the engine. An engine that dies before it ever answered is an
// error, with the end of its output; one that dies later is started again.
func Start(ctx context.Context, cfg Config) (*Engine, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if err := cfg.makeHome(); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	e := &Engine{cfg: cfg, client: cfg.client(), stop: stop, done: make(chan struct{})}
	p, err := e.spawn()
	if err != nil {
		stop()
		return nil, fmt.Errorf("engine: %w", err)
	}
	if err := e.await(ctx, p); err != nil {
		p.end()
		stop()
		return nil, fmt.Errorf("engine: %w", err)
	}
	go e.keep(life, p)
	return e, nil
}

// URL is the engine's base, without a slash at the end.
func (e *Engine) URL() string { return "http://" + e.cfg.Listen }

// Health asks the engine for its version. The error says when it last died.
func (e *Engine) Health(ctx context.Context) error {
	err := e.ask(ctx, "/api/version")
	if err == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(fmt.Errorf("engine: no answer: %w", err), e.last)
}

// Restarts is how often the engine had to be started again.
func (e *Engine) Restarts() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return max(0, e.runs-1)
}

// Close stops the engine and its runners: asks, and after 5 seconds kills.
func (e *Engine) Close() error {
	e.stop()
	<-e.done
	return nil
}

// keep holds the engine up until life ends.
func (e *Engine) keep(life context.Context, p *process) {
	defer close(e.done)
	pause := firstPause
	for {
		began := time.Now()
		select {
		case <-life.Done():
			p.end()
			return
		case <-p.exited:
		}
		e.note(p.err)
		if time.Since(began) > goodRun {
			pause = firstPause
		}
		for p = nil; p == nil; pause = min(2*pause, maxPause) {
			fmt.Fprintf(e.cfg.Log, "engine: starting again in %v\n", pause)
			select {
			case <-life.Done():
				return
			case <-time.After(pause):
			}
			var err error
			if p, err = e.spawn(); err != nil {
				e.note(err)
			}
		}
	}
}

// note records why a run ended or couldn't begin.
func (e *Engine) note(err error) {
	if err == nil {
		err = errors.New("it exited by itself, with status 0")
	}
	err = fmt.Errorf("engine died at %s: %w", time.Now().UTC().Format(time.RFC3339), err)
	fmt.Fprintln(e.cfg.Log, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = err
}

// await polls until the engine answers, dies, or ctx ends.
func (e *Engine) await(ctx context.Context, p *process) error {
	for {
		if err := e.ask(ctx, "/api/version"); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s died before it answered: %w\n%s", filepath.Base(e.cfg.Binary), p.err, p.tail.String())
		case <-ctx.Done():
			return fmt.Errorf("no answer on %s: %w\n%s", e.cfg.Listen, ctx.Err(), p.tail.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// client asks the engine directly, whatever proxy the environment names.
func (c Config) client() *http.Client {
	return &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true, DialContext: c.Dial}, Timeout: 5 * time.Second}
}

func (e *Engine) ask(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL()+path, nil)
	if err != nil {
		return err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", req.URL, res.Status)
	}
	return nil
}

// check refuses what can't work, and what would weaken the engine's cage.
func (c Config) check() error {
	if !filepath.IsAbs(c.Binary) || !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("binary %q, directory %q: want absolute paths", c.Binary, c.Dir)
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 1 || n > 65535 {
		return fmt.Errorf("listen %q: want a loopback address and a port, such as 127.0.0.1:11434", c.Listen)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("listen %q: %s is not a loopback address: the engine has no access control, only the router may reach it", c.Listen, host)
	}
	root := os.Geteuid() == 0
	switch {
	case (c.NetNS == nil) != (c.Dial == nil):
		return errors.New("got a network namespace or a way to dial into one, want both or neither")
	case root && (c.UID <= 0 || c.GID <= 0):
		return fmt.Errorf("uid %d, gid %d: want a user of its own, above 0: the engine parses model files and must not do so as root", c.UID, c.GID)
	case !root && (c.UID != 0 || c.GID != 0):
		return fmt.Errorf("uid %d, gid %d: only root can change the user; want 0 for this process's own", c.UID, c.GID)
	case root:
		for _, path := range []string{c.Binary, filepath.Join(c.Dir, "models")} {
			if err := reachable(path, c.UID, c.GID); err != nil {
				return err
			}
		}
	}
	return nil
}

// reachable finds the folder that would stop uid on its way to path. The engine
// itself would only say that a model doesn't exist.
func reachable(path string, uid, gid int) error {
	for p := path; ; p = filepath.Dir(p) {
		fi, err := os.Stat(p)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		bit := os.FileMode(0o001)
		switch {
		case int(st.Uid) == uid:
			bit = 0o100
		case int(st.Gid) == gid:
			bit = 0o010
		}
		if fi.Mode()&bit == 0 {
			return fmt.Errorf("%s has mode %v: user %d of the engine can't pass to %s; chmod o+x %s", p, fi.Mode(), uid, path, p)
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

func (c Config) home() string { return filepath.Join(c.Dir, "home") }

// makeHome makes the one folder that the engine may write to.
func (c Config) makeHome() error {
	tmp := filepath.Join(c.home(), "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	if c.UID == 0 {
		return nil
	}
	return errors.Join(os.Lchown(c.home(), c.UID, c.GID), os.Lchown(tmp, c.UID, c.GID))
}
