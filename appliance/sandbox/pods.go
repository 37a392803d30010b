package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/gate"
	"github.com/clawbox/clawbox/appliance/kube"
)

// Cluster is where pods are made: kube.Client.
type Cluster interface {
	Create(ctx context.Context, p *kube.Pod) (*kube.Pod, error)
	Get(ctx context.Context, name string) (*kube.Pod, error)
	List(ctx context.Context, key, value string) ([]kube.Pod, error)
	// Delete returns when the pod is gone.
	Delete(ctx context.Context, name, uid string) error
}

// PodOptions say how agents become pods.
type PodOptions struct {
	Cluster  Cluster
	Node     string // this one's name in the cluster
	Registry string // where its containerd finds the store's images: host:port
	// Isolate takes every interface but lo out of a pod's network namespace.
	Isolate func(netns *os.File) error
	// Refused is told of a container of the agents' namespace that nobody
	// launched, or that is not as it was asked for. May be nil.
	Refused func(why string)
}

// Pods runs sandboxes as pods of this node. What its Gate answers the node's
// container runtime is the other half of each start.
type Pods struct {
	l     *Local
	o     PodOptions
	owner string // which daemon made a pod: its state directory, on its node

	// making is held for reading while a pod is being created: its UID comes
	// with the server's answer, and its node may ask before.
	making sync.RWMutex

	mu   sync.Mutex // guards the rest
	uids map[string]*pod
	ids  map[string]*pod // by the container's id
}

// ownerLabel holds which daemon made a pod: Pods.owner.
const ownerLabel = "clawbox.io/appliance"

// agentLabel names a pod's agent, for people.
const agentLabel = "clawbox.io/agent"

// RuntimeClass is how the pods ask for clawbox-runc.
const RuntimeClass = "clawbox"

// OpenPods adds pods to what l can start.
func OpenPods(l *Local, o PodOptions) *Pods {
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	sum := sha256.Sum256([]byte(l.opt.State + "\x00" + o.Node))
	return &Pods{l: l, o: o, owner: hex.EncodeToString(sum[:16]), uids: map[string]*pod{}, ids: map[string]*pod{}}
}

// Sweep deletes the pods that a daemon which died has left; their agents have
// ended with it.
func (p *Pods) Sweep(ctx context.Context) error {
	left, err := p.o.Cluster.List(ctx, ownerLabel, p.owner)
	for _, x := range left {
		p.mu.Lock()
		alive := p.uids[x.Metadata.UID] != nil
		p.mu.Unlock()
		if !alive {
			err = errors.Join(err, p.o.Cluster.Delete(ctx, x.Metadata.Name, x.Metadata.UID))
		}
	}
	return err
}

// Start is Local.Start in a pod: the same Box in the end. The image has no
// Layers; containerd pulls it by its digest.
func (p *Pods) Start(ctx context.Context, s Spec) (*Box, error) {
	if s.Image.Digest.Hex == "" {
		return nil, fmt.Errorf("sandbox: image %q has no digest; want one from Images.Describe", s.Image.Ref)
	}
	if s.Policy != nil && slices.Contains(s.Policy.Require.Features, "memfd-noexec") {
		return nil, fmt.Errorf("sandbox: policy %s requires feature memfd-noexec, which runc can't set in a pod; the filter refuses executable memory there, so leave it out", s.Policy.Name)
	}
	w := &pod{p: p, name: s.Name + "-" + strings.ToLower(rand.Text()[:6]), started: make(chan struct{}), failed: make(chan error, 1)}
	w.image = p.o.Registry + "/" + repository(s.Image.Ref) + "@" + s.Image.Digest.String()
	return p.l.launch(ctx, s, w)
}

// repository is a ref without its tag or digest.
func repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		ref = ref[:i]
	}
	return ref
}

// create asks for the pod and learns its UID.
func (p *Pods) create(ctx context.Context, w *pod) error {
	p.making.RLock()
	defer p.making.RUnlock()
	made, err := p.o.Cluster.Create(ctx, w.manifest())
	if err != nil {
		return err
	}
	if made.Metadata.UID == "" {
		return fmt.Errorf("the cluster gave pod %s no UID", w.name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w.uid = made.Metadata.UID
	p.uids[w.uid] = w
	return nil
}

// find is the launch that a container belongs to.
func (p *Pods) find(uid string) *pod {
	p.making.Lock() // once nobody waits for a UID
	defer p.making.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.uids[uid]
}

// byID is the launch of a container that was created.
func (p *Pods) byID(id string) *pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ids[id]
}

// forget takes a launch out.
func (p *Pods) forget(w *pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.uids, w.uid)
	delete(p.ids, w.id)
}

// Gate is what the node's container runtime asks.
func (p *Pods) Gate() gate.Handler { return podGate{p} }

type podGate struct{ p *Pods }

// Create finds whose container this would be, and refuses it if nobody's.
func (g podGate) Create(_ context.Context, c *gate.Create) (json.RawMessage, error) {
	out, err := g.p.judge(c)
	if err != nil {
		c.Close()
		g.p.o.Refused(err.Error())
	}
	return out, err
}

func (p *Pods) judge(c *gate.Create) (json.RawMessage, error) {
	in, err := readConfig(c.Config)
	if err != nil {
		return nil, err
	}
	uid, kind := in.Annotations[gate.PodOf], in.Annotations[gate.KindOf]
	w := p.find(uid)
	if w == nil {
		return nil, fmt.Errorf("pod %s/%s (%s) is none that this appliance launched: in the agents' namespace there are no others; delete it, and use 'clawbox agent launch'",
			in.Annotations[gate.NamespaceOf], in.Annotations["io.kubernetes.cri.sandbox-name"], uid)
	}
	do := w.container
	if kind == gate.Sandbox {
		do = w.sandbox
	} else if kind != gate.Container {
		return nil, w.fail(fmt.Errorf("pod %s: container %s is of kind %q; want sandbox or container", w.name, c.ID, kind))
	}
	out, err := do(c, in)
	if err != nil {
		return nil, w.fail(fmt.Errorf("pod %s: %w", w.name, err))
	}
	return json.Marshal(out)
}

// Start lets what was granted run.
func (g podGate) Start(_ context.Context, id string, pidfd *os.File) error {
	w := g.p.byID(id)
	if w == nil { // a pod's sandbox, or what was created before this daemon's life
		defer pidfd.Close()
		return g.p.startSandbox(id)
	}
	if err := w.begin(pidfd); err != nil {
		return w.fail(fmt.Errorf("pod %s: %w", w.name, err))
	}
	return nil
}

// startSandbox lets a pod's first container run if it was granted.
func (p *Pods) startSandbox(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.uids {
		if w.isSandbox(id) {
			return nil
		}
	}
	return fmt.Errorf("container %s was not granted by this appliance", id)
}

// Kill asks the agent to end; it has as long as Kubernetes gives it.
func (g podGate) Kill(_ context.Context, id string) {
	if w := g.p.byID(id); w != nil {
		w.ask()
	}
}

// podPatience bounds a pod's start, its image's pull included.
const podPatience = 5 * time.Minute

// look is how often a pod that does not start is looked at.
const look = 250 * time.Millisecond
