package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
)

// Limits bound what uploads that are not finished may take. A zero is the
// default.
type Limits struct {
	Uploads          int           // at a time: 256
	UploadsPerClient int           // 32
	Blob             int64         // bytes of one: 256 GiB
	Staged           int64         // bytes of all: 1 TiB
	StagedPerClient  int64         // 512 GiB
	Free             int64         // bytes that stay free on the disk: 1 GiB; negative: none
	Age              time.Duration // since the last byte: 24 hours
}

func or[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (l Limits) withDefaults() Limits {
	or(&l.Uploads, 256)
	or(&l.UploadsPerClient, 32)
	or(&l.Blob, 256<<30)
	or(&l.Staged, 1<<40)
	or(&l.StagedPerClient, 512<<30)
	or(&l.Free, 1<<30)
	or(&l.Age, 24*time.Hour)
	return l
}

// session is an upload that isn't finished. The store has its bytes; who began
// it, and where it belongs to, is a file in uploads/.
type session struct {
	Repo   string `json:"repo"`
	Client string `json:"client"`

	size    int64
	touched time.Time
}

// sessions are all of them. They outlive the process.
type sessions struct {
	store *content.Store
	dir   string
	lim   Limits

	mu     sync.Mutex // guards what follows, and the sessions
	all    map[string]*session
	unseen int64 // bytes that came since the disk was looked at
}

// openSessions finds the sessions that an earlier process left.
func openSessions(store *content.Store, s shelf, l Limits) (*sessions, error) {
	t := &sessions{store: store, dir: filepath.Join(s.dir, "uploads"), lim: l.withDefaults(), all: map[string]*session{}}
	found, err := store.Uploads()
	if err != nil {
		return nil, err
	}
	for _, u := range found {
		var x session
		ok, err := s.get(filepath.Join(t.dir, u.ID), &x)
		if err != nil {
			return nil, err
		}
		if ok {
			x.size, x.touched = u.Size, u.Modified
			t.all[u.ID] = &x
		}
	}
	return t, t.tidy(s)
}

// tidy removes what is said of sessions that are no more.
func (t *sessions) tidy(s shelf) error {
	names, err := s.list(t.dir)
	for _, n := range names {
		if t.all[n] == nil {
			err = errors.Join(err, s.drop(filepath.Join(t.dir, n)))
		}
	}
	return err
}

// begin makes a session, and ends those that are too old.
func (t *sessions) begin(repo, client string) (*content.Upload, error) {
	t.expire(time.Now())
	if err := t.admit(client); err != nil {
		return nil, err
	}
	u, err := t.store.NewUpload()
	if err != nil {
		return nil, err
	}
	x := &session{Repo: repo, Client: client, touched: time.Now()}
	b, err := json.Marshal(x)
	if err == nil {
		err = durable.WriteFile(filepath.Join(t.dir, u.ID()), b, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, u.Discard())
	}
	t.mu.Lock()
	t.all[u.ID()] = x
	t.mu.Unlock()
	return u, nil
}

func (t *sessions) admit(client string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := 0
	for _, x := range t.all {
		if x.Client == client {
			mine++
		}
	}
	if len(t.all) >= t.lim.Uploads || mine >= t.lim.UploadsPerClient {
		return refuse(http.StatusTooManyRequests, codeTooMany, "%d uploads are under way, %d of them yours; want at most %d and %d: finish or cancel some",
			len(t.all), mine, t.lim.Uploads, t.lim.UploadsPerClient)
	}
	return nil
}

// expire drops the sessions that nothing came for since long ago. One that is
// written to at this moment stays.
func (t *sessions) expire(now time.Time) {
	t.mu.Lock()
	var old []string
	for id, x := range t.all {
		if now.Sub(x.touched) > t.lim.Age {
			old = append(old, id)
		}
	}
	t.mu.Unlock()
	for _, id := range old {
		t.drop(id)
	}
}

// drop discards a session, unless a request writes to it.
func (t *sessions) drop(id string) {
	switch u, err := t.store.Upload(id); {
	case err == nil:
		_ = u.Discard() // what remains is the next collection's
		t.end(id)
	case errors.Is(err, fs.ErrNotExist):
		t.end(id)
	}
}

// end forgets a session.
func (t *sessions) end(id string) {
	t.mu.Lock()
	delete(t.all, id)
	t.mu.Unlock()
	_ = os.Remove(filepath.Join(t.dir, id)) // tidy gets what remains
}

// in says whether session id is one of this repository.
func (t *sessions) in(id, repo string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.all[id]
	return x != nil && x.Repo == repo
}

// room says whether a session of size bytes may get n more, on this disk.
func (t *sessions) room(id string, size, n int64) error {
	if err := t.allow(id, size, n); err != nil {
		return err
	}
	return t.free(n)
}

// free says whether the disk has room for n bytes more.
func (t *sessions) free(n int64) error {
	if t.lim.Free <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(t.store.Dir(), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", t.store.Dir(), err)
	}
	if free := int64(st.Bavail) * st.Bsize; free-n < t.lim.Free {
		return refuse(http.StatusInsufficientStorage, codeDenied, "the store's disk has %d bytes free, and %d must stay: delete what isn't needed, and collect garbage", free, t.lim.Free)
	}
	return nil
}

// grow counts n bytes that are about to be written. Who did not say how much would
// come, and many who did, are held to what stays free, too: the disk is looked at
// again when they have brought an eighth of that, at least each 64 MiB.
func (t *sessions) grow(id string, size, n int64) error {
	if err := t.allow(id, size, n); err != nil {
		return err
	}
	if !t.count(id, size, n) {
		return nil
	}
	if err := t.free(n); err != nil {
		return err // and the next one looks again
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unseen = 0
	return nil
}

// count says whether the disk is to be looked at.
func (t *sessions) count(id string, size, n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.all[id]; x != nil {
		x.size, x.touched = size+n, time.Now()
	}
	t.unseen += n
	return t.unseen >= min(64<<20, t.lim.Free/8)
}

func (t *sessions) allow(id string, size, n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if size+n > t.lim.Blob {
		return refuse(http.StatusRequestEntityTooLarge, codeSize, "a blob of %d bytes, want at most %d", size+n, t.lim.Blob)
	}
	client, all, mine := "", n, n
	if x := t.all[id]; x != nil {
		client = x.Client
	}
	for _, x := range t.all {
		all += x.size
		if x.Client == client {
			mine += x.size
		}
	}
	if all > t.lim.Staged || mine > t.lim.StagedPerClient {
		return refuse(http.StatusTooManyRequests, codeTooMany, "uploads under way would have %d bytes, %d of them yours; want at most %d and %d: finish or cancel some",
			all, mine, t.lim.Staged, t.lim.StagedPerClient)
	}
	return nil
}
