package main

import (
	"os"
	"runtime"
)

// streamProcs is how many goroutines may run at once in a verb that streams.
const streamProcs = 4

// manyProcs begins a verb that moves a bundle's bytes. Its goroutines wait in
// reads and writes of some milliseconds. Where none of Go's processors is idle,
// as with two of them on two cores, its monitor takes the processor back from
// each that waits, and then looks every 20 µs for the next one: a tenth of the
// CPU time of a load, or more. With some to spare it leaves them alone. The
// kernel still shares out the cores that there are. Who sets GOMAXPROCS is
// obeyed.
func manyProcs() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < streamProcs {
		runtime.GOMAXPROCS(streamProcs)
	}
}
