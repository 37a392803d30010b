package ledger

import (
	"bufio"
	"context"
	rand2 "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// tape is a disk that keeps what was done.
type tape struct {
	osDisk
	ops []op
}

func (d *tape) do(ops ...op) error {
	for _, o := range ops {
		o.data = slices.Clone(o.data)
		d.ops = append(d.ops, o)
		if err := d.osDisk.do(o); err != nil {
			return err
		}
	}
	return nil
}

// promise is what the log had answered when n ops were done.
type promise struct {
	ops  int
	head Head
}

// record runs a log over the end of a bundle and returns what it did to the
// disk, starting from the files in base.
func record(t *testing.T, k keys, base string, calls []int) ([]op, []promise) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	must(t, os.CopyFS(dir, os.DirFS(base)))
	d := &tape{osDisk: osDisk{dir: dir}}
	w, tear, err := load(d, dir, k.s, k.v)
	must(t, err)
	must(t, w.settle(tear))
	ps := []promise{{0, w.head}}
	for _, n := range calls {
		es := make([][]byte, n)
		for i := range es {
			r := tiny(int(w.head.Size) + i)
			r.Time = time.Unix(1, 0)
			es[i], err = encode(r, "")
			must(t, err)
		}
		for len(es) > 0 { // as Log.commitAll does
			n, err := w.commit(es)
			must(t, err)
			es = es[n:]
			ps = append(ps, promise{len(d.ops), w.head})
			if w.due() {
				must(t, w.rotate())
			}
		}
	}
	must(t, w.publish())
	must(t, w.tidy())
	return d.ops, ps
}

// secured says whether ops[i] is durable for certain once ops are done.
func secured(ops []op, i int) bool {
	o := ops[i]
	for _, s := range ops[i+1:] {
		switch {
		case o.verb == grow && s.verb == flush && s.path == o.path:
			return true
		case o.verb != grow && s.verb == syncDir && s.path == path.Dir(o.path):
			return true
		}
	}
	return o.verb == flush || o.verb == syncDir
}

// survive builds in dir what a crash after ops leaves, with keep deciding for
// everything that isn't secured: 0 lost, 1 kept, 2 half of it, 3 as zeros, 4 the
// other half after zeros.
func survive(t *testing.T, dir string, ops []op, keep func(i int) int) {
	t.Helper()
	d := &osDisk{dir: dir}
	defer d.Close()
	unnamed := map[string][]byte{} // written and flushed, name not durable
	for i, o := range ops {
		how := 1
		if !secured(ops, i) {
			how = keep(i)
		}
		if o.verb == flush || o.verb == syncDir {
			continue
		}
		if o.verb == write && how == 0 {
			unnamed[o.path] = o.data
			continue
		}
		if how == 0 {
			continue
		}
		if b, ok := unnamed[o.path]; ok && o.verb == rename {
			must(t, d.do(op{verb: write, path: o.path, data: b}))
		}
		switch how {
		case 2:
			o.data = o.data[:len(o.data)/2]
		case 3:
			o.data = make([]byte, len(o.data))
		case 4:
			n := len(o.data) / 2
			o.data = append(make([]byte, n), o.data[n:]...)
		}
		if err := d.do(o); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestCrashMatrix stops a log at every step of commits and a rotation, and lets
// each unflushed step survive or not. Whatever
// was answered must be there afterwards, and the log must go on.
func TestCrashMatrix(t *testing.T) {
	k := newKeys(t, "ledger.example")
	base := logOf(t, k, walEntries-6, 100, walEntries)
	ops, promises := record(t, k, base, []int{3, 2, 5, 1})
	fates := map[string]func(*rand.Rand) func(int) int{
		"nothing unflushed survives": func(*rand.Rand) func(int) int { return func(int) int { return 0 } },
		"all survives":               func(*rand.Rand) func(int) int { return func(int) int { return 1 } },
		"some":                       func(r *rand.Rand) func(int) int { return func(int) int { return r.IntN(5) } },
	}
	names := []string{"nothing unflushed survives", "all survives", "some", "some", "some"}
	r := rand.New(rand.NewPCG(1, 2))
	states := 0
	for n := range len(ops) + 1 {
		held := promises[0].head
		for _, p := range promises {
			if p.ops <= n {
				held = p.head
			}
		}
		for _, name := range names {
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(base)))
			fate := fates[name](r)
			// A file that is only being written can be half there; its name and
			// a rename are there or not.
			survive(t, dir, ops[:n], func(i int) int {
				f := fate(i)
				if f > 1 && ops[i].verb != grow && (ops[i].verb != write || !together(ops[i:n])) {
					return 1
				}
				return f
			})
			if err := recovers(dir, k, held); err != nil {
				last := op{}
				if n > 0 {
					last = ops[n-1]
				}
				t.Fatalf("crash after op %d (%s %s), %s: %v", n, last.verb, last.path, name, err)
			}
			must(t, os.RemoveAll(dir))
			states++
		}
	}
	t.Logf("%d ops, %d states, all recovered", len(ops), states)
}

// TestCrashInRecovery stops Open at every step of cutting a torn commit off:
// the next Open must finish, though power fails between any two of them.
func TestCrashInRecovery(t *testing.T) {
	k := newKeys(t, "ledger.example")
	for _, n := range []int{20, walEntries - 1} { // in the second the recovery's own record fills the wal
		base := logOf(t, k, n, 100, walEntries)
		held := Head{Size: int64(n), Checkpoint: readFile(t, base, checkpointFile)}
		add(walFile, "E\x00\x09torn")(t, base)
		ops, _ := record(t, k, base, nil)
		for i := range len(ops) + 1 {
			for mask := range 8 { // which of the last unflushed steps survive
				dir := filepath.Join(t.TempDir(), "log")
				must(t, os.CopyFS(dir, os.DirFS(base)))
				survive(t, dir, ops[:i], func(j int) int { return mask >> (j % 3) & 1 })
				if err := recovers(dir, k, held); err != nil {
					t.Fatalf("%d entries, crash after op %d of %d, surviving %03b: %v", n, i, len(ops), mask, err)
				}
				must(t, os.RemoveAll(dir))
			}
		}
	}
}

// together says whether the first of ops may still be under way when the last
// one is done: only writes follow it, which share a call.
func together(ops []op) bool {
	return !slices.ContainsFunc(ops, func(o op) bool { return o.verb != write })
}

// recovers opens, appends, closes and verifies against what was answered.
func recovers(dir string, k keys, held Head) error {
	l, err := Open(dir, k.s, k.v)
	if err != nil {
		return err
	}
	if got := l.Head().Size; got < held.Size {
		l.Close()
		return fmt.Errorf("%d entries are left of %d", got, held.Size)
	}
	if err := l.Record(context.Background(), tiny(0)); err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	_, err = Verify(dir, k.v, Options{Anchors: [][]byte{held.Checkpoint}})
	return err
}

// faulty fails op number at, before or after doing it, and everything after.
type faulty struct {
	osDisk
	at, n int
	done  bool // the op's effect stays
}

var errBroken = errors.New("disk is broken")

func (d *faulty) do(ops ...op) error {
	for _, o := range ops {
		d.n++
		if d.n >= d.at {
			if d.n == d.at && d.done {
				_ = d.osDisk.do(o) // the error is what counts
			}
			return errBroken
		}
		if err := d.osDisk.do(o); err != nil {
			return err
		}
	}
	return nil
}

// TestFailedWriteIsSticky breaks every op in turn: the call that needed it
// fails, every later call fails, and what was answered before stays.
func TestFailedWriteIsSticky(t *testing.T) {
	k := newKeys(t, "ledger.example")
	const n = walEntries - 6
	base := logOf(t, k, n, 100, walEntries)
	for at := 1; ; at++ {
		for _, done := range []bool{false, true} {
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(base)))
			d := &faulty{osDisk: osDisk{dir: dir}, at: at, done: done}
			l, err := openOn(d, dir, k.s, k.v)
			if err != nil {
				if !errors.Is(err, errBroken) {
					t.Fatal(err)
				}
				must(t, recovers(dir, k, Head{Size: n, Checkpoint: readFile(t, base, checkpointFile)}))
				continue
			}
			failed := false
			for i := range 8 {
				err := l.Record(context.Background(), tiny(i))
				if failed && err == nil {
					t.Fatalf("op %d: record %d succeeded after a failure", at, i)
				}
				failed = failed || err != nil
				if err != nil && !errors.Is(err, errBroken) {
					t.Fatalf("op %d: %v", at, err)
				}
			}
			h := l.Head()
			if err := l.Close(); err == nil && d.n >= at {
				t.Fatalf("op %d failed and Close says nothing", at)
			}
			must(t, recovers(dir, k, h))
			if d.n < at { // there are no more ops
				return
			}
		}
	}
}

func readFile(t *testing.T, p ...string) []byte {
	b, err := os.ReadFile(filepath.Join(p...))
	must(t, err)
	return b
}

// TestTearIsRecorded: what was cut stands in the log.
func TestTearIsRecorded(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, 3, 1)
	add(walFile, "E\x00\x09torn")(t, dir)
	f := refused(t, dir, k, "torn", Options{})
	if f.Next != startOnce || f.Entry != 3 {
		t.Errorf("fault is %v", f)
	}
	l, err := Open(dir, k.s, k.v)
	must(t, err)
	must(t, l.Close())
	_, err = Verify(dir, k.v, Options{})
	must(t, err)
	for e, err := range Read(dir, 3) {
		must(t, err)
		r := e.Record
		if r.Kind != KindService || r.Reason != "ledger.recovered" || r.Attrs["dropped_bytes"] != int64(7) {
			t.Errorf("record is %+v", r)
		}
		return
	}
	t.Error("no record of the tear")
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("LEDGER_TEST_DIR"); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child records for ever and says what is durable, until it is killed.
func child(dir string) {
	s, err := note.NewSigner(os.Getenv("LEDGER_TEST_KEY"))
	if err != nil {
		panic(err)
	}
	v, err := note.NewVerifier(os.Getenv("LEDGER_TEST_VKEY"))
	if err != nil {
		panic(err)
	}
	l, err := Open(dir, s, v)
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		n, err := l.Append(context.Background(), tiny(i), tiny(i), tiny(i))
		if err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
}

func TestKill(t *testing.T) {
	sk, vk, err := note.GenerateKey(rand2.Reader, "ledger.example")
	must(t, err)
	s, err := note.NewSigner(sk)
	must(t, err)
	v, err := note.NewVerifier(vk)
	must(t, err)
	dir := newLog(t, keys{s, v}, 0, 1)
	for i := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LEDGER_TEST_DIR="+dir, "LEDGER_TEST_KEY="+sk, "LEDGER_TEST_VKEY="+vk)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		last := int64(-1)
		for j := 0; j < 100+i*17 && lines.Scan(); j++ {
			_, err := fmt.Sscan(lines.Text(), &last)
			must(t, err)
		}
		must(t, cmd.Process.Kill())
		for lines.Scan() {
			if strings.HasSuffix(lines.Text(), "\n") {
				_, err := fmt.Sscan(lines.Text(), &last)
				must(t, err)
			}
		}
		_ = cmd.Wait() // it was killed
		l, err := Open(dir, s, v)
		must(t, err)
		if l.Head().Size < last+3 {
			t.Fatalf("%d entries are left, %d were answered", l.Head().Size, last+3)
		}
		must(t, l.Close())
		_, err = Verify(dir, v, Options{})
		must(t, err)
	}
}
