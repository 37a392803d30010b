package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/service"
)

// Annotations that CRI gives every container it makes. Source: containerd,
// internal/cri/annotations.
const (
	KindOf      = "io.kubernetes.cri.container-type" // Sandbox or Container
	NamespaceOf = "io.kubernetes.cri.sandbox-namespace"
	PodOf       = "io.kubernetes.cri.sandbox-uid"
	ImageOf     = "io.kubernetes.cri.image-name"

	Sandbox   = "sandbox"   // the pod's first one, which holds its namespaces
	Container = "container" // of a pod
)

// Methods of the socket.
const (
	methodCreate = "create"
	methodStart  = "start"
	methodKill   = "kill"
)

// Create asks for a container.
type Create struct {
	ID     string          `json:"id"`
	Config json.RawMessage `json:"config"` // OCI's config.json, as containerd wrote it

	// Descriptors; the handler's from now on. Of a sandbox there is Net alone,
	// and that only if it has a network namespace of its own. Of a container
	// there are the others.
	Net     *os.File `json:"-"`
	Root    *os.File `json:"-"` // O_PATH: the root file system
	Control *os.File `json:"-"` // the daemon's ends of the launcher's channels
	Spec    *os.File `json:"-"`
	Stdout  *os.File `json:"-"`
	Stderr  *os.File `json:"-"`
}

// Close closes the descriptors.
func (c *Create) Close() {
	for _, f := range c.files() {
		f.Close() // nil is refused, no more
	}
}

// files are the descriptors in the order in which they are sent.
func (c *Create) files() []*os.File {
	all := []*os.File{c.Net, c.Root, c.Control, c.Spec, c.Stdout, c.Stderr}
	return slices.DeleteFunc(all, func(f *os.File) bool { return f == nil })
}

// created answers it.
type created struct {
	Config json.RawMessage `json:"config"`
}

// Handler is the supervisor. It is called from several goroutines.
type Handler interface {
	// Create returns the config.json to make the container by, or why not.
	Create(ctx context.Context, c *Create) (json.RawMessage, error)
	// Start lets a container's first process run: pidfd is of that process,
	// which waits in runc, and is the handler's from now on.
	Start(ctx context.Context, id string, pidfd *os.File) error
	// Kill is told that Kubernetes asks the container to end.
	Kill(ctx context.Context, id string)
}

// Serve answers l until it closes. Only root is let in.
func Serve(l *net.UnixListener, h Handler) error {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		if err := admit(c, h); err != nil {
			c.Close()
		}
	}
}

// admit serves one caller. Its connection ends when it hangs up.
func admit(c *net.UnixConn, h Handler) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not ask", cred.Uid)
	}
	f, err := c.File()
	if err != nil {
		return err
	}
	c.Close() // f is the connection now
	_, err = service.NewConn(f, func(ctx context.Context, r *service.Request) (any, error) { return answer(ctx, h, r) })
	return err
}

func answer(ctx context.Context, h Handler, r *service.Request) (any, error) {
	var c Create
	if r.Method == methodCreate {
		if err := r.Decode(&c); err != nil {
			return nil, err
		}
		if err := c.take(r); err != nil {
			c.Close()
			return nil, err
		}
		cfg, err := h.Create(ctx, &c)
		return created{cfg}, err
	}
	var id string
	if err := r.Decode(&id); err != nil {
		return nil, err
	}
	switch r.Method {
	case methodStart:
		f, err := r.File(0)
		if err != nil {
			return nil, err
		}
		return nil, h.Start(ctx, id, f)
	case methodKill:
		h.Kill(ctx, id)
		return nil, nil
	}
	return nil, fmt.Errorf("the gate knows no %q", r.Method)
}

// take takes the descriptors that came along.
func (c *Create) take(r *service.Request) (err error) {
	to := []**os.File{&c.Net}
	switch len(r.Files) {
	case 0:
		return nil
	case 1:
	case channels + 1:
		to = []**os.File{&c.Root, &c.Control, &c.Spec, &c.Stdout, &c.Stderr}
	default:
		return fmt.Errorf("%d descriptors came along; want none, 1, or %d", len(r.Files), channels+1)
	}
	for i, p := range to {
		if *p, err = r.File(i); err != nil {
			return err
		}
	}
	return nil
}
