package content

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Upload is a blob of a digest that nobody knows yet, as a registry's clients
// send them: in several requests, perhaps to several processes, with a restart
// in between. Write appends; Close ends a request durably; Commit ends the
// session. It belongs to one goroutine.
type Upload struct {
	Partial
	id string
}

// UploadInfo says what is known of a session without opening it.
type UploadInfo struct {
	ID       string
	Size     int64 // bytes on disk, those of a request under way included
	Modified time.Time
}

var uploadID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// NewUpload begins a session.
func (s *Store) NewUpload() (*Upload, error) {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	return s.upload(hex.EncodeToString(id), os.O_CREATE|os.O_EXCL)
}

// Upload goes on with a session: fs.ErrNotExist when there is none, ErrBusy
// when another request is in it.
func (s *Store) Upload(id string) (*Upload, error) {
	if !uploadID.MatchString(id) {
		return nil, fmt.Errorf("upload %.80q: %w", id, fs.ErrNotExist)
	}
	return s.upload(id, 0)
}

func (s *Store) upload(id string, create int) (*Upload, error) {
	u := &Upload{Partial{s: s, path: filepath.Join(s.path(uploadDir), id), size: -1}, id}
	if err := u.start(create); err != nil {
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	if create != 0 {
		if err := u.save(); err != nil { // the session exists when its name is handed out
			return nil, errors.Join(fmt.Errorf("upload %s: %w", id, err), u.Discard())
		}
	}
	return u, nil
}

// ID returns the session's name: 32 hex digits that nobody can guess.
func (u *Upload) ID() string { return u.id }

// Close makes durable what was written and leaves the session open to others,
// also when nothing was written yet.
func (u *Upload) Close() error {
	if u.f == nil {
		return nil
	}
	return errors.Join(u.save(), u.shut())
}

// Commit makes the session the blob h. Content that is something else drops
// the session with an ErrMismatch.
func (u *Upload) Commit(h v1.Hash) error {
	if err := check(h); err != nil {
		return err
	}
	u.want = h
	return u.Partial.Commit()
}

// Uploads lists the sessions, in no order.
func (s *Store) Uploads() (out []UploadInfo, err error) {
	es, err := os.ReadDir(s.path(uploadDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("content store: %w", err)
	}
	for _, e := range es {
		fi, err := e.Info()
		if err != nil || strings.HasSuffix(e.Name(), journal) || !fi.Mode().IsRegular() {
			continue // ended meanwhile
		}
		out = append(out, UploadInfo{e.Name(), fi.Size(), fi.ModTime()})
	}
	return out, nil
}
