package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The power-cut test runs a store over a disk that records, and then builds,
// for every moment and for several fates of what was not flushed by then, the
// directory that a machine could find after a power cut. The model is harsher
// than ext4: a file's name is durable only after fsync of its directory, and
// unflushed writes and names are lost one by one, in any combination.

// op is one change of the disk.
type op struct {
	kind     string // create write truncate sync rename remove syncdir
	path, to string
	id       int // of the file
	off      int64
	data     []byte
	began    int // sync: only what came before is flushed
}

// recorder is a disk that remembers all changes.
type recorder struct {
	realDisk
	mu  sync.Mutex // guards what follows
	ops []op
	ids map[string]int
	n   int
}

func (r *recorder) add(o op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

func (r *recorder) now() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

func (r *recorder) open(path string, flag int, perm fs.FileMode) (file, error) {
	_, missing := os.Lstat(path)
	f, err := r.realDisk.open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if missing != nil {
		r.n++
		r.ids[path] = r.n
		r.ops = append(r.ops, op{kind: "create", path: path, id: r.n})
	}
	return &recorded{f, r, r.ids[path]}, nil
}

func (r *recorder) rename(from, to string) error {
	err := r.realDisk.rename(from, to)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ops = append(r.ops, op{kind: "rename", path: from, to: to, id: r.ids[from]})
		r.ids[to] = r.ids[from]
	}
	return err
}

func (r *recorder) remove(path string) error {
	err := r.realDisk.remove(path)
	if err == nil {
		r.add(op{kind: "remove", path: path})
	}
	return err
}

func (r *recorder) syncDir(dir string) error {
	at := r.now()
	err := r.realDisk.syncDir(dir)
	if err == nil {
		r.add(op{kind: "syncdir", path: dir, began: at})
	}
	return err
}

// recorded is a file of a recorder.
type recorded struct {
	file
	r  *recorder
	id int
}

func (f *recorded) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.file.WriteAt(b, off)
	f.r.add(op{kind: "write", id: f.id, off: off, data: bytes.Clone(b[:n])})
	return n, err
}

func (f *recorded) Truncate(n int64) error {
	err := f.file.Truncate(n)
	f.r.add(op{kind: "truncate", id: f.id, off: n})
	return err
}

func (f *recorded) Sync() error {
	at := f.r.now()
	err := f.file.Sync()
	if err == nil {
		f.r.add(op{kind: "sync", id: f.id, began: at})
	}
	return err
}

// flushed says for each of ops whether it has reached the disk for certain.
func flushed(ops []op) []bool {
	out := make([]bool, len(ops))
	for _, s := range ops {
		for i := range s.began {
			o := ops[i]
			switch o.kind {
			case "write", "truncate":
				out[i] = out[i] || s.kind == "sync" && s.id == o.id
			case "create", "remove":
				out[i] = out[i] || s.kind == "syncdir" && s.path == filepath.Dir(o.path)
			case "rename":
				out[i] = out[i] || s.kind == "syncdir" && s.path == filepath.Dir(o.to)
			}
		}
	}
	return out
}

// replay applies the operations that keep says, and returns files by path.
func replay(ops []op, keep func(i int) bool) map[string][]byte {
	data, names := map[int][]byte{}, map[string]int{}
	for i, o := range ops {
		if !keep(i) {
			continue
		}
		switch o.kind {
		case "create":
			names[o.path] = o.id
		case "rename":
			delete(names, o.path)
			names[o.to] = o.id
		case "remove":
			delete(names, o.path)
		case "truncate":
			data[o.id] = append(data[o.id], make([]byte, max(0, int(o.off)-len(data[o.id])))...)[:o.off]
		case "write":
			if end := int(o.off) + len(o.data); end > len(data[o.id]) {
				data[o.id] = append(data[o.id], make([]byte, end-len(data[o.id]))...)
			}
			copy(data[o.id][o.off:], o.data)
		}
	}
	out := map[string][]byte{}
	for p, id := range names {
		out[p] = data[id]
	}
	return out
}

// fates are what may become of operations that were not flushed.
func fates(k int) map[string]func(op) bool {
	out := map[string]func(op) bool{
		"all kept":   func(op) bool { return true },
		"all lost":   func(op) bool { return false },
		"data lost":  func(o op) bool { return o.kind != "write" && o.kind != "truncate" },
		"torn":       func(op) bool { return true },
		"names lost": func(o op) bool { return o.kind == "write" || o.kind == "truncate" },
	}
	for i := range 4 {
		rnd := rand.New(rand.NewSource(int64(k*10 + i)))
		out[fmt.Sprint("dice ", i)] = func(op) bool { return rnd.Intn(2) == 0 }
	}
	return out
}

// writeTwice writes the blob b in pieces, is interrupted once, and tags.
func writeTwice(s *Store, b []byte) error {
	for _, stop := range []int{len(b) / 3, len(b)} {
		p, err := s.Resume(sum(b), int64(len(b)))
		if err != nil {
			return err
		}
		for int(p.Size()) < stop {
			_, err := p.Write(b[p.Size():min(int64(stop), p.Size()+4096)])
			if err != nil {
				return err
			}
		}
		if stop < len(b) {
			err = p.Close()
		} else {
			err = p.Commit()
		}
		if err != nil {
			return err
		}
	}
	return s.Put(context.Background(), sum(b[:5000]), 5000, bytes.NewReader(b[:5000]))
}

// TestPowerCut: after a power cut at any moment no blob is torn, what the
// journal calls safe is what was written, and no more than promised is lost.
func TestPowerCut(t *testing.T) {
	setPace(t, 8192)
	b := noise(60_000)
	s := open(t)
	rec := &recorder{ids: map[string]int{}}
	s.disk = rec
	must(t, writeTwice(s, b))
	states := 0
	for k := range len(rec.ops) + 1 {
		safe := flushed(rec.ops[:k])
		for name, fate := range fates(k) {
			ops := rec.ops[:k]
			keep := make([]bool, k)
			for i := range keep {
				keep[i] = safe[i] || fate(ops[i])
			}
			if name == "torn" {
				ops = tear(ops, safe)
			}
			files := replay(ops, func(i int) bool { return keep[i] })
			if _, ok := files[s.Path(sum(b))]; k == len(rec.ops) && !ok {
				t.Errorf("%s: the blob is lost after Commit returned", name)
			}
			checkCut(t, fmt.Sprintf("after %d operations, %s", k, name), s.dir, files, b, written(ops))
			states++
		}
		if t.Failed() {
			t.Fatalf("operations:\n%s", describe(rec.ops[:k]))
		}
	}
	t.Logf("%d operations, %d states", len(rec.ops), states)
}

// tear lets only the first half of what was not flushed reach the disk.
func tear(ops []op, safe []bool) []op {
	out := slices.Clone(ops)
	for i, o := range out {
		if o.kind == "write" && !safe[i] {
			out[i].data = o.data[:len(o.data)/2]
		}
	}
	return out
}

// written is the highest byte of the first file that was written, or all of it
// once it has its name.
func written(ops []op) (n int64) {
	for _, o := range ops {
		if o.id == 1 && o.kind == "write" {
			n = max(n, o.off+int64(len(o.data)))
		}
	}
	return n
}

func describe(ops []op) string {
	var b strings.Builder
	for i, o := range ops {
		fmt.Fprintf(&b, "%3d %-8s %s %s id %d off %d len %d\n", i, o.kind, filepath.Base(o.path), filepath.Base(o.to), o.id, o.off, len(o.data))
	}
	return b.String()
}

// checkCut opens what the power cut left, holds it against the promises, and
// goes on with the blob.
func checkCut(t *testing.T, what, from string, files map[string][]byte, b []byte, written int64) {
	t.Helper()
	dir, err := os.MkdirTemp(ramDir(), "powercut")
	must(t, err)
	defer os.RemoveAll(dir)
	_, err = Open(dir)
	must(t, err)
	for p, data := range files {
		rel, err := filepath.Rel(from, p)
		must(t, err, os.MkdirAll(filepath.Dir(filepath.Join(dir, rel)), 0o755), os.WriteFile(filepath.Join(dir, rel), data, 0o600))
	}
	s, err := Open(dir)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	checkBlobs(t, what, s)
	if _, err := s.Stat(sum(b)); err == nil {
		return
	}
	p, err := s.Resume(sum(b), int64(len(b)))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if redo := written - p.Size(); redo > 2*pace {
		t.Errorf("%s: %d of %d bytes are to be written again, want at most %d", what, redo, written, 2*pace)
	}
	_, err = p.Write(b[p.Size():])
	if err = errors.Join(err, p.Commit()); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	checkBlobs(t, what, s)
}

// ramDir is a place where fsync costs nothing, if there is one.
func ramDir() string {
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func checkBlobs(t *testing.T, what string, s *Store) {
	t.Helper()
	es, err := os.ReadDir(s.path("blobs/sha256"))
	must(t, err)
	for _, e := range es {
		got, err := os.ReadFile(filepath.Join(s.path("blobs/sha256"), e.Name()))
		if err != nil || sum(got).Hex != e.Name() {
			t.Errorf("%s: blob %s has %d bytes of digest %s, %v", what, e.Name(), len(got), sum(got), err)
		}
	}
}

// killer is a disk that ends its process at the n-th change.
type killer struct {
	realDisk
	left int
	mu   sync.Mutex
}

func (k *killer) step() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left--; k.left == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (k *killer) open(path string, flag int, perm fs.FileMode) (file, error) {
	k.step()
	f, err := k.realDisk.open(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &killed{f, k}, nil
}
func (k *killer) rename(from, to string) error { k.step(); return k.realDisk.rename(from, to) }
func (k *killer) remove(path string) error     { k.step(); return k.realDisk.remove(path) }
func (k *killer) syncDir(dir string) error     { k.step(); return k.realDisk.syncDir(dir) }

type killed struct {
	file
	k *killer
}

func (f *killed) WriteAt(b []byte, off int64) (int, error) {
	f.k.step()
	return f.file.WriteAt(b, off)
}
func (f *killed) Sync() error               { f.k.step(); return f.file.Sync() }
func (f *killed) Truncate(n int64) error    { f.k.step(); return f.file.Truncate(n) }
func (f *killed) Chmod(m fs.FileMode) error { f.k.step(); return f.file.Chmod(m) }

// killWriter is the process that TestKilledAtEveryStep kills.
func killWriter(dir, step string) {
	pace = 8192
	n, err := strconv.Atoi(step)
	if err != nil {
		panic(err)
	}
	s, err := Open(dir)
	if err != nil {
		panic(err)
	}
	s.disk = &killer{left: n}
	if err := writeTwice(s, noise(60_000)); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// TestKilledAtEveryStep: SIGKILL before each change of the disk; the next
// process goes on, in the same store.
func TestKilledAtEveryStep(t *testing.T) {
	setPace(t, 8192)
	b, steps := noise(60_000), 0
	for n := 1; ; n++ {
		dir, err := os.MkdirTemp(ramDir(), "killed")
		must(t, err)
		defer os.RemoveAll(dir)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CONTENT_TEST_KILL="+dir, "CONTENT_TEST_STEP="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		if err == nil {
			break // it got to the end
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v\n%s", n, err, out)
		}
		s, err := Open(dir)
		must(t, err)
		checkBlobs(t, fmt.Sprint("killed at ", n), s)
		must(t, writeTwice(s, b))
		has(t, s, b)
		empty(t, s)
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil { // a lone journal may be there
			t.Error(err)
		}
		empty(t, s, partialDir)
		steps = n
	}
	if steps < 50 {
		t.Errorf("killed at %d steps only", steps)
	}
}
