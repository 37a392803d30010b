package ledger

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type keys struct {
	s note.Signer
	v note.Verifier
}

func newKeys(t testing.TB, name string) keys {
	t.Helper()
	sk, vk, err := note.GenerateKey(rand.Reader, name)
	must(t, err)
	s, err := note.NewSigner(sk)
	must(t, err)
	v, err := note.NewVerifier(vk)
	must(t, err)
	return keys{s, v}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tiny is record i of a test log.
func tiny(i int) Record {
	return Record{Kind: KindConnect, Verdict: Denied, Agent: "ada", Host: fmt.Sprintf("h%d.example", i), Port: 443, Reason: "net.unlisted"}
}

// fill appends n records in commits of at most step.
func fill(t testing.TB, l *Log, n, step int) {
	t.Helper()
	for i := 0; i < n; i += step {
		var rs []Record
		for j := i; j < min(i+step, n); j++ {
			rs = append(rs, tiny(j))
		}
		must(t, l.Record(context.Background(), rs...))
	}
}

// newLog makes a closed log of n entries.
func newLog(t testing.TB, k keys, n, step int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Create(dir, k.s)
	must(t, err)
	fill(t, l, n, step)
	must(t, l.Close())
	return dir
}

func TestLogKeepsAndVerifies(t *testing.T) {
	k := newKeys(t, "ledger.example")
	for _, n := range []int{0, 1, 2, width, width + 1, walEntries - 1, walEntries, walEntries + 1, 3*walEntries - 300} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := newLog(t, k, n, 97)
			r, err := Verify(dir, k.v, Options{})
			must(t, err)
			if r.Size != int64(n) || r.Bundles != int64(n/walEntries*walEntries/width) || r.Live {
				t.Fatalf("report %+v", r)
			}
			// Open and go on: the old checkpoint is an anchor of the new log.
			l, err := Open(dir, k.s, k.v)
			must(t, err)
			fill(t, l, 10, 3)
			must(t, l.Close())
			r2, err := Verify(dir, k.v, Options{Anchors: [][]byte{[]byte(r.Checkpoint)}})
			must(t, err)
			if r2.Size != int64(n+10) || r2.Anchors != 1 {
				t.Fatalf("report %+v", r2)
			}
		})
	}
}

// TestRootIsTlogs compares with the plain algorithm of x/mod/sumdb/tlog over
// all entries, which shares only the node hash with ours.
func TestRootIsTlogs(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, walEntries+600, 41)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(idx []int64) ([]tlog.Hash, error) {
		hs := make([]tlog.Hash, len(idx))
		for i, x := range idx {
			hs[i] = stored[x]
		}
		return hs, nil
	})
	w, err := readWal(dir, strict(k.v))
	must(t, err)
	tiles := hashes{dir, w.start(), w.leaves}
	n := int64(0)
	for e, err := range Read(dir, 0) {
		must(t, err)
		hs, err := tlog.StoredHashes(n, e.Event, reader)
		must(t, err)
		stored = append(stored, hs...)
		n++
		want, err := tlog.TreeHash(n, reader)
		must(t, err)
		got, err := tiles.root(n)
		must(t, err)
		if got != want {
			t.Fatalf("root at %d is %v, want %v", n, got, want)
		}
	}
	if n != walEntries+600 || w.head().Root != must1(tlog.TreeHash(n, reader))(t) {
		t.Fatalf("%d entries", n)
	}
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); must(t, err); return v }
}

func TestConcurrentRecords(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Create(dir, k.s)
	must(t, err)
	const workers, each = 16, 50
	seen := make([]string, workers*each*2)
	var wg sync.WaitGroup
	for g := range workers {
		wg.Go(func() {
			for i := range each {
				a, b := fmt.Sprintf("g%d-%d", g, i), fmt.Sprintf("g%d-%d+", g, i)
				n, err := l.Append(context.Background(), Record{Kind: KindDNS, Host: a}, Record{Kind: KindDNS, Host: b})
				if err != nil {
					t.Error(err)
					return
				}
				seen[n], seen[n+1] = a, b
			}
		})
	}
	wg.Wait()
	if h := l.Head(); h.Size != workers*each*2 {
		t.Fatalf("head is %d", h.Size)
	}
	r, err := Verify(dir, k.v, Options{}) // while it is open
	must(t, err)
	if !r.Live || r.Size != workers*each*2 {
		t.Fatalf("report %+v", r)
	}
	must(t, l.Close())
	_, err = Verify(dir, k.v, Options{})
	must(t, err)
	for e, err := range Read(dir, 0) {
		must(t, err)
		if e.Record.Host != seen[e.Index] {
			t.Fatalf("entry %d is %q, Append said %q", e.Index, e.Record.Host, seen[e.Index])
		}
	}
}

func TestVerifyWhileWriting(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Create(dir, k.s)
	must(t, err)
	fill(t, l, 240, 240)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for i := range 60 {
				if err := l.Record(context.Background(), tiny(i), tiny(i), tiny(i), tiny(i), tiny(i), tiny(i), tiny(i)); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	last, runs := verifyUntil(t, dir, k, l, done)
	must(t, l.Close())
	r, err := Verify(dir, k.v, Options{Anchors: [][]byte{last}})
	must(t, err)
	t.Logf("%d runs beside %d entries, %d bundles", runs, r.Size, r.Bundles)
}

// verifyUntil verifies and reads a growing log until done. Each result is the
// next run's anchor.
func verifyUntil(t *testing.T, dir string, k keys, l *Log, done chan struct{}) (last []byte, runs int) {
	for {
		select {
		case <-done:
			return last, runs
		default:
		}
		before := l.Head()
		o := Options{Anchors: [][]byte{before.Checkpoint}}
		if last != nil {
			o.Anchors = append(o.Anchors, last)
		}
		r, err := Verify(dir, k.v, o)
		must(t, err)
		if r.Size < before.Size {
			t.Fatalf("verified %d entries, %d were durable before", r.Size, before.Size)
		}
		n := int64(0)
		for e, err := range Read(dir, 0) {
			must(t, err)
			if e.Index != n {
				t.Fatalf("entry %d where %d was due", e.Index, n)
			}
			n++
		}
		if n < r.Size {
			t.Fatalf("read %d entries of %d verified", n, r.Size)
		}
		last, runs = []byte(r.Checkpoint), runs+1
	}
}

func TestOneWriter(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := filepath.Join(t.TempDir(), "log")
	l, err := Create(dir, k.s)
	must(t, err)
	if _, err := Open(dir, k.s, k.v); err == nil {
		t.Fatal("second writer was let in")
	}
	if _, err := Create(dir, k.s); err == nil {
		t.Fatal("created over a log")
	}
	must(t, l.Close())
	if err := l.Record(context.Background(), tiny(0)); err == nil {
		t.Fatal("recorded in a closed log")
	}
	other := newKeys(t, "ledger.example")
	if _, err := Open(dir, other.s, other.v); err == nil {
		t.Fatal("opened with another key")
	}
	if _, err := Open(dir, k.s, other.v); err == nil {
		t.Fatal("opened with a pair that isn't one")
	}
	l, err = Open(dir, k.s, k.v)
	must(t, err)
	must(t, l.Close())
}

func TestCreate(t *testing.T) {
	k := newKeys(t, "ledger.example")
	top := t.TempDir()
	dir := filepath.Join(top, "log")
	must(t, os.Mkdir(dir, 0o755)) // an installer may have made it
	l, err := Create(dir, k.s)
	must(t, err)
	must(t, l.Close())
	if _, err := Create(filepath.Join(top, "none", "log"), k.s); err == nil {
		t.Error("created without a parent")
	}
	must(t, os.WriteFile(filepath.Join(top, "file"), nil, 0o600))
	if _, err := Create(filepath.Join(top, "file"), k.s); err == nil {
		t.Error("created over a file")
	}
	es, err := os.ReadDir(top)
	must(t, err)
	if len(es) != 2 {
		t.Errorf("left behind: %v", es)
	}
}

func TestRecordRefuses(t *testing.T) {
	k := newKeys(t, "ledger.example")
	l, err := Create(filepath.Join(t.TempDir(), "log"), k.s)
	must(t, err)
	defer l.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"nothing":     l.Record(t.Context()),
		"no kind":     l.Record(t.Context(), tiny(0), Record{}),
		"a dead call": l.Record(ended, tiny(0)),
	} {
		if err == nil {
			t.Errorf("%s was recorded", name)
		}
	}
	if l.Head().Size != 0 {
		t.Errorf("%d entries", l.Head().Size)
	}
	must(t, l.Record(t.Context(), tiny(0))) // a bad record isn't a broken log
}

func BenchmarkRecord(b *testing.B) {
	for _, par := range []int{1, 64} {
		b.Run(fmt.Sprint(par), func(b *testing.B) {
			k := newKeys(b, "ledger.example")
			l, err := Create(filepath.Join(b.TempDir(), "log"), k.s)
			must(b, err)
			defer l.Close()
			b.SetParallelism(max(1, par/2)) // GOMAXPROCS is 2 on the reference machine
			b.ResetTimer()
			if par == 1 {
				for i := range b.N {
					must(b, l.Record(context.Background(), tiny(i)))
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if err := l.Record(context.Background(), tiny(i)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	r := tiny(1)
	r.Time = time.Now()
	for b.Loop() {
		if _, err := encode(r, "host"); err != nil {
			b.Fatal(err)
		}
	}
}
