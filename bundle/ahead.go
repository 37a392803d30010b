package bundle

import v1 "github.com/google/go-containerregistry/pkg/v1"

// fetch is a chunk on its way into a buffer.
type fetch struct {
	blob v1.Hash
	i    int
	err  error
}

// ahead reads the chunk that comes next beside the work on this one: one at a
// time, in a goroutine of its own. The rest belongs to one goroutine.
type ahead struct {
	before, now *fetch
	busy        chan error // nil: nothing is under way
}

// start begins to read chunk i of h with read, when what was begun before is
// read.
func (a *ahead) start(h v1.Hash, i int, read func() error) {
	a.wait()
	a.before, a.now, a.busy = a.now, &fetch{blob: h, i: i}, make(chan error, 1)
	go func(done chan<- error) { done <- read() }(a.busy)
}

// wait waits for what is under way.
func (a *ahead) wait() {
	if a.busy != nil {
		a.now.err = <-a.busy
		a.busy = nil
	}
}

// take waits for chunk i of h, once; ok is false when it was not begun.
func (a *ahead) take(h v1.Hash, i int) (err error, ok bool) {
	for _, f := range []*fetch{a.before, a.now} {
		if f == nil || f.blob != h || f.i != i {
			continue
		}
		if f == a.now {
			a.wait()
		}
		f.i = -1 // another time it is read again
		return f.err, true
	}
	return nil, false
}

// drop waits for what is under way, and forgets it when it failed: whoever mends
// an error may mend that one, too.
func (a *ahead) drop() {
	a.wait()
	if a.now != nil && a.now.err != nil {
		a.now.i = -1
	}
}
