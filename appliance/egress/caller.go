package egress

import (
	"net/netip"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// who asks which process opened the connection, once.
func (c *conn) who() {
	ask := c.box.proxy.c.Who
	if ask == nil {
		return
	}
	client, err1 := netip.ParseAddrPort(c.in.RemoteAddr().String())
	server, err2 := netip.ParseAddrPort(c.in.LocalAddr().String())
	if err1 != nil || err2 != nil {
		return
	}
	if w, ok := ask(c.box.agent.ID, unmap(client), unmap(server)); ok {
		c.caller = w
		c.proc = ledger.Process{PID: w.PID, PPID: w.PPID, UID: w.UID, Comm: w.Comm}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
