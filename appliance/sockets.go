package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one that the supervisor answers on.
type socket struct {
	name string
	mode os.FileMode
	h    http.Handler
	// conns bounds the connections at once, see crowd: every user of the host may
	// open the health socket, and agents are started with descriptors, too.
	conns int
	// answer bounds the time for an answer; 0: logs and exec sessions take as
	// long as they take.
	answer time.Duration
	// root: others are cut off, whatever the file's mode is for a moment.
	root bool
}

const (
	controlConns = 512
	healthConns  = 16
)

// serveUnix makes a socket in dir.
func serveUnix(dir string, s socket) (*http.Server, net.Listener, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, s.name)
	// A socket of a daemon that died stays behind; Run holds the ledger's lock,
	// so no living daemon can own this one.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s (a socket's path may have 107 bytes): %w", path, err)
	}
	if err := os.Chmod(path, s.mode); err != nil {
		l.Close()
		return nil, nil, err
	}
	srv := &http.Server{
		Handler: s.h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 10 * time.Second, WriteTimeout: s.answer,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(*caller).cred)
		},
	}
	return srv, &door{l, crowd{most: s.conns}, s.root}, nil
}

// door lets in who may come, as long as there is room.
type door struct {
	net.Listener
	crowd crowd
	root  bool
}

// crowd is who is in. Of most connections one user has a quarter, and all users
// together leave a quarter to the one that this process runs as: an upgrade asks
// the health socket, and must not be taken back because somebody else talks.
type crowd struct {
	most int

	mu     sync.Mutex // guards the rest
	in     map[uint32]int
	others int // of in, those of other users
}

// enter says whether there is room for one more of a user.
func (c *crowd) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.others + c.in[self()]
	if all >= c.most {
		return false
	}
	if uid != self() {
		if c.in[uid] >= max(1, c.most/4) || c.others >= c.most-max(1, c.most/4) {
			return false
		}
		c.others++
	}
	if c.in == nil {
		c.in = map[uint32]int{}
	}
	c.in[uid]++
	return true
}

func (c *crowd) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in[uid]--; c.in[uid] == 0 {
		delete(c.in, uid)
	}
	if uid != self() {
		c.others--
	}
}

// self is the user that this process runs as.
func self() uint32 { return uint32(os.Geteuid()) }

// caller is somebody who came in.
type caller struct {
	*slotted
	cred unix.Ucred // as the kernel has it
}

type callerKey struct{}

// callerOf is who sent a request.
func callerOf(ctx context.Context) unix.Ucred {
	c, _ := ctx.Value(callerKey{}).(unix.Ucred)
	return c
}

// Accept waits for the next one.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := credOf(c)
		if err == nil && (!d.root || cred.Uid == self()) && d.crowd.enter(cred.Uid) {
			return &caller{&slotted{Conn: c, free: func() { d.crowd.leave(cred.Uid) }}, *cred}, nil
		}
		c.Close() // without a word: whoever it is could fill the log with them
	}
}

// credOf asks the kernel who connected.
func credOf(c net.Conn) (cred *unix.Ucred, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("it is no Unix connection")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, err)
}
