// Command clawbox-launch is the last code before an agent: it builds the
// sandbox, confines itself and lets its child become the agent's program.
//
// `clawbox serve` starts it and talks to it on descriptor 3; by hand it only
// says so. It must be built static (CGO_ENABLED=0), because it runs inside
// foreign root file systems, and it imports nothing but package confine.
package main

import (
	"os"

	"github.com/clawbox/clawbox/appliance/confine"
)

func main() { os.Exit(confine.Main(os.Args[1:])) }
