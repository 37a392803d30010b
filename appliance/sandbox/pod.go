package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/gate"
	"github.com/clawbox/clawbox/appliance/kube"
)

// pod is the site of one launch in Kubernetes. Its steps come from two sides:
// Box.start waits in enclose, and the node's runtime asks at the gate, first
// for the pod's sandbox, then for the container, then for its start. Each may
// come once, in this order.
type pod struct {
	p     *Pods
	name  string // in the cluster
	image string // by digest

	uid string // set under Pods.mu by create

	started chan struct{} // closed once the launcher may run: b.p and b.g are set
	failed  chan error    // the first reason why it won't

	mu   sync.Mutex // guards the rest
	over bool       // nothing is granted any more
	b    *Box
	s    *Spec
	root *confine.Root
	hold string   // the sandbox's id
	net  *os.File // the pod's network namespace
	id   string   // the container's id
	ends *gate.Create
}

// manifest is the pod that is asked for. What it says about security is for
// the cluster's admission; the node obeys the policy alone.
func (w *pod) manifest() *kube.Pod {
	no, yes, b := false, true, w.s.Policy.Budgets
	limits := map[string]string{"memory": strconv.FormatInt(b.Memory, 10)}
	if b.CPU > 0 {
		limits["cpu"] = strconv.Itoa(int(b.CPU*1000)) + "m"
	}
	return &kube.Pod{
		Metadata: kube.Meta{Name: w.name, Labels: map[string]string{ownerLabel: w.p.owner, agentLabel: w.s.Name}},
		Spec: kube.PodSpec{
			RuntimeClassName: RuntimeClass, RestartPolicy: "Never", AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			NodeSelector: map[string]string{"kubernetes.io/hostname": w.p.o.Node}, TerminationGracePeriodSeconds: 5,
			// kubelet shall not put the cluster's resolver into a file that is ours.
			SecurityContext: &kube.Security{RunAsNonRoot: &yes, RunAsUser: int64(w.b.id.uid), RunAsGroup: int64(w.b.id.gid), Seccomp: &kube.Seccomp{Type: "RuntimeDefault"}},
			DNSPolicy:       "None", DNSConfig: &kube.DNSConfig{Nameservers: []string{"127.0.0.53"}},
			Containers: []kube.Container{{
				Name: user, Image: w.image, ImagePullPolicy: "IfNotPresent", Command: []string{launcherPath, "pod"},
				// The budgets bound it; what they ask for shall not keep it from a small node.
				Resources:       kube.Resources{Limits: limits, Requests: map[string]string{"memory": "16Mi", "cpu": "10m"}},
				SecurityContext: &kube.Security{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &kube.Capabilities{Drop: []string{"ALL"}}},
			}},
		},
	}
}

// enclose makes the pod and waits until its launcher stands.
func (w *pod) enclose(ctx context.Context, b *Box, s *Spec, root *confine.Root) (err error) {
	w.mu.Lock()
	w.b, w.s, w.root = b, s, root
	w.mu.Unlock()
	defer func() {
		if err != nil { // waits for a begin that is under way, and lets none follow
			w.mu.Lock()
			w.over = true
			w.mu.Unlock()
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, podPatience, fmt.Errorf("pod %s did not start within %v", w.name, podPatience))
	defer cancel()
	if err := w.p.create(ctx, w); err != nil {
		return err
	}
	if err := w.await(ctx); err != nil {
		return err
	}
	if err := confine.Send(b.p.control, &root.Supervisor); err != nil {
		return err
	}
	return b.p.stands(ctx)
}

// await returns when the launcher may run, or why it never will: the gate
// says so, or the cluster.
func (w *pod) await(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-w.started:
			return nil
		case err := <-w.failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		x, err := w.p.o.Cluster.Get(ctx, w.name)
		if err != nil {
			return err
		}
		if why := x.Stuck(); why != "" {
			select {
			case err := <-w.failed: // the gate knows better
				return err
			case <-w.started:
				return nil
			case <-time.After(look):
			}
			return fmt.Errorf("pod %s does not start: %s", w.name, why)
		}
	}
}

// fail keeps the first reason and returns err.
func (w *pod) fail(err error) error {
	select {
	case w.failed <- err:
	default:
	}
	return err
}

// isSandbox says whether id is the pod's first container.
func (w *pod) isSandbox(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.over && w.hold == id
}

var errOver = errors.New("its launch is over")

// sandbox grants the pod's first container, which holds its namespaces, and
// takes its network away.
func (w *pod) sandbox(c *gate.Create, in *specs.Spec) (*specs.Spec, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over:
		return nil, errOver
	case w.hold != "":
		return nil, fmt.Errorf("it has a sandbox (%s), and gets no other", w.hold)
	case c.Net == nil:
		return nil, errors.New("it asks for the host's network; an agent has one of its own")
	}
	if err := w.p.o.Isolate(c.Net); err != nil {
		return nil, fmt.Errorf("take its network away: %w", err)
	}
	out, err := holder(in)
	if err == nil {
		w.hold, w.net = c.ID, c.Net
	}
	return out, err
}

// container grants the agent's.
func (w *pod) container(c *gate.Create, in *specs.Spec) (*specs.Spec, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over:
		return nil, errOver
	case w.hold == "":
		return nil, errors.New("its sandbox was not granted")
	case w.id != "":
		return nil, fmt.Errorf("it has a container (%s), and gets no other: an agent that ended is launched again", w.id)
	case c.Control == nil:
		return nil, errors.New("its channels did not come along")
	case in.Annotations[gate.ImageOf] != w.image:
		return nil, fmt.Errorf("its image is %q; want %q", in.Annotations[gate.ImageOf], w.image)
	}
	out, err := w.config(in, c.Root)
	if err != nil {
		return nil, err
	}
	c.Root.Close()
	c.Root = nil
	w.id, w.ends = c.ID, c
	w.p.mu.Lock()
	w.p.ids[c.ID] = w
	w.p.mu.Unlock()
	return out, nil
}

// begin lets the launcher run, once the container is bounded and watched.
func (w *pod) begin(pidfd *os.File) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.ends == nil {
		pidfd.Close()
		return errors.Join(errOver, errors.New("or it was started before"))
	}
	c := w.ends
	w.ends = nil
	defer c.Close()
	l, err := adopt(pidfd, c)
	if err != nil {
		return err
	}
	b := w.b
	b.p = l
	for i, f := range []*os.File{c.Stdout, c.Stderr} {
		o := &late{}
		o.set([]io.Writer{w.s.Stdout, w.s.Stderr}[i])
		b.out = append(b.out, o)
		l.carry(o, f)
	}
	c.Stdout, c.Stderr = nil, nil
	go l.heed()
	if err := w.bound(); err != nil {
		return err
	}
	close(w.started)
	return nil
}

// bound puts the container in its cgroups and under the guard.
func (w *pod) bound() (err error) {
	b := w.b
	if err := sameNet(w.net, b.p.pid); err != nil {
		return err
	}
	if b.g, err = b.l.h.adopt(b.p.pid, b.l.parent, w.name); err != nil {
		return err
	}
	p := w.s.Policy.Budgets
	if err := errors.Join(b.g.limit(limits{p.Processes + supervisorTasks, p.Memory, p.CPU}), b.limitIO(p)); err != nil {
		return err
	}
	if b.cgroupID, err = b.g.id(); err != nil || w.s.Guard == nil {
		return err
	}
	sc, err := b.scope(w.s, []string{launcherPath})
	if err != nil {
		return err
	}
	sc.NoRefusals = true // the launcher's own misses are no news
	if b.guard, err = w.s.Guard(sc); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// sameNet refuses a container that is not in the network which was taken away.
func sameNet(ns *os.File, pid int) error {
	var a, b unix.Stat_t
	err := errors.Join(unix.Fstat(int(ns.Fd()), &a), unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &b))
	if err == nil && (a.Ino != b.Ino || a.Dev != b.Dev) {
		err = fmt.Errorf("it is in network namespace %d; want its pod's, %d", b.Ino, a.Ino)
	}
	return err
}

// ask has the agent end, because Kubernetes wants it to.
func (w *pod) ask() {
	select {
	case <-w.started:
		w.b.because("stopped by Kubernetes")
		w.b.p.end() // SIGKILL follows
	default:
	}
}

// leave deletes the pod.
func (w *pod) leave() error {
	w.mu.Lock()
	w.over = true
	if w.ends != nil {
		w.ends.Close()
	}
	w.net.Close() // nil is refused, no more
	w.mu.Unlock()
	w.p.forget(w)
	if w.uid == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := w.p.o.Cluster.Delete(ctx, w.name, w.uid); err != nil {
		return fmt.Errorf("nothing of it runs, but pod %s is not deleted: %w", w.name, err)
	}
	return nil
}
