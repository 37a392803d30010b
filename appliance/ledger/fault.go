package ledger

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
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
	startOnce = "the service did not stop in order; start it once, it completes or cuts what was under way and records it (a copy that was taken while it ran: copy again)"
	askAnchor = "it was changed, or is of another log or key; get it again from where it was kept, and if it is the same, the log was replaced: stop using it"
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

// readPlain reads a plain file of the log of at most most bytes. It follows no
// link and doesn't wait on a pipe that somebody put in the file's place. Its
// errors are Faults.
func readPlain(dir, name string, most int64) ([]byte, error) {
	bad := func(err error) error { return &Fault{name, -1, err.Error(), restore} }
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, bad(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, bad(err)
	}
	if !fi.Mode().IsRegular() {
		return nil, bad(fmt.Errorf("is %v, want a plain file", fi.Mode()))
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("is longer than %d bytes", most)
	}
	if err != nil {
		return nil, bad(err)
	}
	return b, nil
}
