package guard

import (
	"net/netip"
	"time"
)

// Caller is the process that opened a connection, as it was at that moment.
// Numbers are the host's. A file is known by its inode: the kernel keeps no
// path that could be trusted.
type Caller struct {
	At   time.Duration // when it connected, since boot (CLOCK_BOOTTIME)
	PID  int
	PPID int
	UID  int
	Comm string // the kernel's 15-byte name; the process can choose it
	Exe  Inode  // its program
	// Ancestors are the programs of its parent, the parent's parent and so on,
	// as far as they live in the scope, at most eight. A process whose parent
	// has died has the sandbox's first process as its parent.
	Ancestors []Inode
}

// Who tells which process of a scope opened the TCP connection that a server
// sees as coming from client to server. It is known before the server's accept
// returns, and for some 30,000 later connections of all scopes together. False:
// unknown, which whoever asks on behalf of a rule about programs must take as
// "no such program".
//
// It is the last one that connected from there to here: whoever asks has to see
// that the connection is not older than Caller.At, or its opener may be gone and
// somebody else have its port.
func (g *Guard) Who(scopeID string, client, server netip.AddrPort) (Caller, bool) {
	id, ok := g.cgroupOf(scopeID)
	if !ok {
		return Caller{}, false
	}
	k := witnessEnds{
		Cgroup: id, Local: sixteen(client.Addr()), Remote: sixteen(server.Addr()),
		LocalPort: client.Port(), RemotePort: server.Port(),
	}
	var c witnessCaller
	if err := g.objs.Callers.Lookup(k, &c); err != nil {
		return Caller{}, false
	}
	return c.caller(), true
}

func (g *Guard) cgroupOf(scopeID string) (uint64, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, false
	}
	for id, w := range g.watches {
		if w.s.ID == scopeID {
			return id, true
		}
	}
	return 0, false
}

func (c *witnessCaller) caller() Caller {
	r := Caller{At: time.Duration(c.BootNs), PID: int(c.Pid), PPID: int(c.Ppid), UID: int(c.Uid), Comm: text16(&c.Comm), Exe: c.Exe.inode()}
	for _, f := range c.Up[:min(int(c.Ups), len(c.Up))] {
		r.Ancestors = append(r.Ancestors, f.inode())
	}
	return r
}

func (f witnessFileId) inode() Inode { return Inode{Dev: userDev(f.Dev), Ino: f.Ino} }
