package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What passes between the images of a service.
const (
	wireFD    = 3                 // the socket to the supervisor
	cageEnv   = "CLAWBOX_CAGE"    // the Cage, in the second image's environment
	callCage  = "service.cage"    // the supervisor's first message, to the first image
	callStart = "service.start"   // its second, to the second image: the configuration
	callAlive = "service.alive"   // asks for an answer
	callEnd   = "service.end"     // its last
	ended     = "service.ended:1" // what the answer to callEnd is
)

// Role is the code of one service. It reads its configuration from r, whose
// descriptors it may take, and returns the handler of all further calls. The
// service ends when the supervisor does, or asks for it.
type Role func(s *Self, r *Request) (Handler, error)

// Self is the service's own side.
type Self struct {
	Conn *Conn // to the supervisor

	cage   Cage
	sealed bool
	proof  Proof

	mu      sync.Mutex
	handler Handler
	closers []io.Closer
	over    chan struct{} // closed when the end was asked for
}

// OnEnd closes c when the service is asked to end, last come first.
func (s *Self) OnEnd(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, c)
}

// Seal puts the system call filter on and proves the cage. Main does it
// before anything else, unless the Cage says Late.
func (s *Self) Seal() (err error) {
	if s.sealed {
		return nil
	}
	if s.proof, err = s.cage.seal(); err == nil {
		s.sealed = true
	}
	return err
}

// Main is the whole of a service process and does not return. args is how the
// program was called, without the program's name, so that it can be called
// again.
func Main(role string, roles map[string]Role, args []string) {
	f, ok := roles[role]
	var err error
	switch {
	case !ok || !connected():
		err = errors.New("is started by 'clawbox serve' alone, which holds the other end")
	case os.Getenv(cageEnv) == "":
		err = first(args)
	default:
		err = second(f)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "clawbox service %s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// connected says whether the supervisor's socket is there.
func connected() bool {
	domain, err := unix.GetsockoptInt(wireFD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && domain == unix.AF_UNIX
}

// first reads the cage, and not a byte more, and enters it.
func first(args []string) error {
	f, err := readFrame(rawReader(wireFD))
	if err != nil {
		return fmt.Errorf("read the cage: %w", err)
	}
	var c Cage
	if f.method != callCage || json.Unmarshal(f.body, &c) != nil {
		return fmt.Errorf("got message %q, want %q", f.method, callCage)
	}
	if err := c.check(); err != nil {
		return err
	}
	return c.again(append([]string{"clawbox"}, args...), []string{cageEnv + "=" + string(f.body)})
}

// rawReader reads a descriptor without taking it over: the second image goes
// on reading where the first stops.
type rawReader int

func (fd rawReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			ps := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(ps, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return 0, err
			}
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

// second is the service itself.
func second(role Role) error {
	s := &Self{over: make(chan struct{})}
	if err := json.Unmarshal([]byte(os.Getenv(cageEnv)), &s.cage); err != nil {
		return err
	}
	if !s.cage.Late {
		if err := s.Seal(); err != nil {
			return err
		}
	}
	unix.CloseOnExec(wireFD)
	gate := make(chan struct{}) // until Conn is set
	conn, err := NewConn(os.NewFile(wireFD, "supervisor"), func(ctx context.Context, r *Request) (any, error) {
		<-gate
		return s.handle(ctx, role, r)
	})
	if err != nil {
		return err
	}
	s.Conn = conn
	close(gate)
	select {
	case <-conn.Done():
		return fmt.Errorf("lost the supervisor: %w", conn.Err())
	case <-s.over:
		<-conn.Done() // the supervisor has the answer
		return nil
	}
}

// handle answers the supervisor: the configuration first, then the role.
func (s *Self) handle(ctx context.Context, role Role, r *Request) (any, error) {
	switch r.Method {
	case callStart:
		return s.begin(role, r)
	case callEnd:
		return s.end()
	case callAlive:
		return nil, nil
	}
	s.mu.Lock()
	h := s.handler
	s.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("%s: the service isn't configured yet", r.Method)
	}
	return h(ctx, r)
}

func (s *Self) begin(role Role, r *Request) (any, error) {
	h, err := role(s, r)
	if err == nil && !s.sealed {
		err = errors.New("the role did not seal itself")
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handler != nil {
		return nil, errors.New("configured twice")
	}
	s.handler = h
	return s.proof, nil
}

func (s *Self) end() (any, error) {
	s.mu.Lock()
	cs := s.closers
	s.closers = nil
	s.mu.Unlock()
	var errs []error
	for i := range cs {
		errs = append(errs, cs[len(cs)-1-i].Close())
	}
	select {
	case <-s.over:
	default:
		close(s.over)
	}
	return ended, errors.Join(errs...)
}

// Proof is what a service found out about its own cage.
type Proof struct {
	UID      int      `json:"uid"`
	Keeps    []string `json:"keeps,omitempty"` // capabilities
	Landlock int      `json:"landlock"`        // ABI
	Refused  []string `json:"refused"`         // attempts and their errors
}

// attempt is something that a service must not be able to do.
type attempt struct {
	what string
	want syscall.Errno
	only func(*Cage) bool // nil: every service
	try  func() error
}

// attempts are tried by every service at its start.
var attempts = []attempt{
	{"list /", unix.EACCES, nil, func() error { return opening("/", unix.O_RDONLY|unix.O_DIRECTORY) }},
	{"execute a program", unix.EPERM, nil, func() error { return unix.Exec("/proc/self/exe", []string{"x"}, nil) }},
	{"trace", unix.EPERM, nil, func() error { return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME) }},
	{"make a namespace", unix.EPERM, nil, func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"mount", unix.EPERM, nil, func() error { return unix.Mount("none", "/", "tmpfs", 0, "") }},
	{"become root", unix.EPERM, nil, func() error { return call(unix.SYS_SETRESUID, 0, 0, 0) }},
	{"signal another process", unix.EPERM, nil, func() error { return unix.Kill(1, 0) }},
	{"listen", unix.EPERM, nil, func() error { return call(unix.SYS_LISTEN, wireFD, 1) }},
	{"bind", unix.EPERM, func(c *Cage) bool { return !c.may("interfaces") }, func() error { return call(unix.SYS_BIND, wireFD, 0, 0) }},
	{"load BPF", unix.EPERM, func(c *Cage) bool { return !c.may("bpf") }, func() error { return call(unix.SYS_BPF, 0, 0, 0) }},
	{"open a TCP socket", unix.EPERM, func(c *Cage) bool { return !c.may("connect") }, func() error { return call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0) }},
	{"bind a TCP port", unix.EACCES, func(c *Cage) bool { return c.may("interfaces") && c.ABI >= 4 }, binding},
	{"connect to another TCP port", unix.EACCES, (*Cage).ported, connecting},
	{"open a packet socket", unix.EPERM, nil, func() error { return call(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0) }},
}

// binding is refused by Landlock, where it knows ports.
func binding() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet4{Port: strange})
}

// strange is a TCP port that no service has a use for.
const strange = 5

// ported says that the cage names ports, and the kernel keeps to them.
func (c *Cage) ported() bool {
	return c.may("connect") && c.ABI >= 4 && len(c.Ports) > 0 && !slices.Contains(c.Ports, strange)
}

// connecting is refused by Landlock before anybody is asked.
func connecting() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: strange})
}

func call(nr uintptr, a ...uintptr) error {
	a = append(a, 0, 0, 0)
	if _, _, e := unix.Syscall(nr, a[0], a[1], a[2]); e != 0 {
		return e
	}
	return nil
}

func opening(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// seal finishes the cage and proves it.
func (c *Cage) seal() (Proof, error) {
	if c.may("connect") {
		// Go finds out whether the machine has IPv6 by binding, once.
		_, _ = net.ResolveTCPAddr("tcp", "[::1]:1")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return Proof{}, err
	}
	if err := c.install(); err != nil {
		return Proof{}, err
	}
	p := Proof{UID: os.Getuid(), Keeps: c.Keep}
	abi, err := c.readBack()
	if err != nil {
		return p, err
	}
	p.Landlock = abi
	for _, a := range attempts {
		if a.only != nil && !a.only(c) {
			continue
		}
		if err := a.try(); !errors.Is(err, a.want) {
			return p, fmt.Errorf("the cage does not hold: to %s gave %w, want %w", a.what, err, a.want)
		}
		p.Refused = append(p.Refused, a.what+": "+unix.ErrnoName(a.want))
	}
	return p, nil
}

// readBack asks the kernel what this process is. landlock_create_ruleset is
// refused by now, so the version came with the cage.
func (c *Cage) readBack() (int, error) {
	caps, same, err := getcaps()
	if err != nil {
		return 0, err
	}
	nnp, _, _ := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	mode, _, _ := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_SECCOMP, 0, 0, 0, 0, 0)
	groups, err := os.Getgroups()
	if err != nil || len(groups) > 0 {
		return 0, fmt.Errorf("the kernel reports groups %v (%w), want none", groups, err)
	}
	if caps != c.mask() || !same || nnp != 1 || mode != unix.SECCOMP_MODE_FILTER || os.Getuid() != c.UID || os.Getgid() != c.GID {
		return 0, fmt.Errorf("the kernel reports uid %d, gid %d, capabilities %#x, no_new_privs %d, seccomp mode %d; want %d, %d, %#x, 1, %d",
			os.Getuid(), os.Getgid(), caps, nnp, mode, c.UID, c.GID, c.mask(), unix.SECCOMP_MODE_FILTER)
	}
	return c.ABI, nil
}
