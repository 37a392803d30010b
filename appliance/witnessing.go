package appliance

import "net/netip"

// callWho asks the guard which program opened a connection.
const callWho = "who" // whoAsked → egress.Caller

// whoAsked is one connection, as the server's side sees it.
type whoAsked struct {
	Agent  string         `json:"agent"`
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
}
