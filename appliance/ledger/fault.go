package ledger

import (
	"fmt"
	"strings"
)

// A Fault is a reason why the files aren't the log that was written.
type Fault struct {
	File    string // relative to the log's directory
	Entry   int64  // the entry, or the first of several, or -1
	Problem string // what was found and what was wanted
	Next    string // what to do now
}

// What to do about a fault.
const (
	restore   = "the log was changed or its disk is damaged; stop using it and compare it with a copy and with the checkpoints kept elsewhere"
	startOnce = "the service did not stop in order; start it once, it completes or cuts what was under way and records it"
)

func (f *Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Entry >= 0 {
		fmt.Fprintf(&b, ", entry %d", f.Entry)
	}
	fmt.Fprintf(&b, ": %s: %s", f.Problem, f.Next)
	return b.String()
}
