package guard

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// attachment is one program and how it is attached.
type attachment struct {
	name   string
	prog   *ebpf.Program
	cgroup ebpf.AttachType // with 0 it is a tracepoint
}

// attachments are the programs that stay attached as long as the Guard lives.
// Those of the network sit at the top of the cgroup tree and ask themselves
// whether a scope is meant: attaching them to each scope would cost its start.
func (g *Guard) attachments() []attachment {
	o := &g.objs
	return []attachment{
		{"on_exec", o.OnExec, 0},
		{"on_signal", o.OnSignal, 0},
		{"on_socket", o.OnSocket, ebpf.AttachCGroupInetSockCreate},
		{"on_connect4", o.OnConnect4, ebpf.AttachCGroupInet4Connect},
		{"on_connect6", o.OnConnect6, ebpf.AttachCGroupInet6Connect},
		{"on_sendmsg4", o.OnSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		{"on_sendmsg6", o.OnSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		{"on_tcp", o.OnTcp, ebpf.AttachCGroupSockOps},
	}
}

func (g *Guard) attach() error {
	for _, a := range g.attachments() {
		l, err := a.attach(g.mount.dir)
		if err != nil {
			return fmt.Errorf("attach %s: %w", a.name, err)
		}
		g.links = append(g.links, l)
	}
	return nil
}

func (a attachment) attach(top string) (link.Link, error) {
	if a.cgroup == 0 {
		return attachTracepoint(a.prog)
	}
	return link.AttachCgroup(link.CgroupOptions{Path: top, Attach: a.cgroup, Program: a.prog})
}

func attachTracepoint(p *ebpf.Program) (link.Link, error) {
	return link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachTraceRawTp})
}

// hooks are the programs of T1 or T2.
type hooks struct {
	coll  *ebpf.Collection
	links []link.Link
	names []string
}

// hookings tell how the programs of a tier are loaded and attached.
var hookings = map[Tier]struct {
	load   func() (*ebpf.CollectionSpec, error)
	attach func(*ebpf.Program) (link.Link, error)
}{
	TierLSM: {loadLsm, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachLSM(link.LSMOptions{Program: p})
	}},
	TierModify: {loadModify, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachModifyReturn})
	}},
}

// hook loads and attaches the programs of a tier, on the maps of the others.
func (g *Guard) hook(t Tier) error {
	how := hookings[t]
	spec, err := how.load()
	if err != nil {
		return err
	}
	share := map[string]*ebpf.Map{
		witnessMapCommon: g.objs.Common, witnessMapScopes: g.objs.Scopes, witnessMapSlots: g.objs.Slots,
		witnessMapAllow: g.objs.Allow, witnessMapExecs: g.objs.Execs, witnessMapOpens: g.objs.Opens,
	}
	for name, m := range share {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: share})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	h := &hooks{coll: c}
	for name, p := range c.Programs {
		l, err := how.attach(p)
		if err != nil {
			return errors.Join(fmt.Errorf("attach %s: %w", name, err), h.close())
		}
		h.links, h.names = append(h.links, l), append(h.names, name)
	}
	g.hooks = h
	return nil
}

func (h *hooks) programs() []*ebpf.Program {
	var ps []*ebpf.Program
	for _, p := range h.coll.Programs {
		ps = append(ps, p)
	}
	return ps
}

func (h *hooks) close() error {
	var errs []error
	for _, l := range h.links {
		errs = append(errs, l.Close())
	}
	h.coll.Close()
	return errors.Join(errs...)
}
