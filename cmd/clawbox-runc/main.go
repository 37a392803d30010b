// Command clawbox-runc is the OCI runtime of the RuntimeClass "clawbox": it asks
// `clawbox serve` about every container of the agents' namespace, and then
// becomes runc.
//
// containerd calls it; by hand it behaves as runc does. Its settings stand in
// clawbox-runc.json beside it: see package gate.
package main

import (
	"os"

	"github.com/clawbox/clawbox/appliance/gate"
)

func main() { os.Exit(gate.Main(os.Args[1:])) }
