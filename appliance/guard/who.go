package guard

import "net/netip"

// Caller is the process that opened a connection, as it was at that moment.
// Numbers are the host's. A file is known by its inode: the kernel keeps no
// path that could be trusted.
type Caller struct {
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
// sees as coming from client to server. False: unknown, which whoever asks on
// behalf of a rule about programs must take as "no such program".
func (g *Guard) Who(scopeID string, client, server netip.AddrPort) (Caller, bool) {
	return g.caller(scopeID, client, server)
}

// caller is not known to any program yet: nobody is found, and a rule about
// programs never matches.
func (g *Guard) caller(string, netip.AddrPort, netip.AddrPort) (Caller, bool) { return Caller{}, false }
