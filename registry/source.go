package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// Source is where a registry that is for pulling has its names and bytes: a
// store, or a bundle that is served from its media. It is used by many
// goroutines.
type Source interface {
	// Refs returns the descriptors that have a name (content.RefName), and
	// those without one that refer to others.
	Refs() ([]v1.Descriptor, error)
	// Open opens a blob: fs.ErrNotExist when there is none, an *ElsewhereError
	// to say where it is. Bytes that are not the blob's must end in an error of
	// Read, not be returned.
	Open(ctx context.Context, h v1.Hash) (Blob, error)
	// State differs from an earlier one when Refs may have changed.
	State() (string, error)
}

// Blob is an open blob.
type Blob interface {
	io.ReadSeekCloser
	Size() int64 // bytes
}

// ElsewhereError is an fs.ErrNotExist with words for the client.
type ElsewhereError struct{ Words string }

func (e *ElsewhereError) Error() string { return e.Words }

// Is makes errors.Is(err, fs.ErrNotExist) true.
func (e *ElsewhereError) Is(target error) bool { return target == fs.ErrNotExist }

// Of returns a registry over src, for pulling; what o says of pushing is
// refused.
func Of(src Source, o Options) (http.Handler, error) {
	s, err := newServer(src, o)
	if err != nil {
		return nil, err
	}
	s.push = false
	return s, nil
}

// storeSource is a store.
type storeSource struct{ *content.Store }

// Open opens a file of the store.
func (s storeSource) Open(_ context.Context, h v1.Hash) (Blob, error) {
	f, err := s.Store.Open(h)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("blob %s is %v, want a regular file: load the bundle, or push it, again", h, fi.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return storeBlob{f, fi.Size()}, nil
}

type storeBlob struct {
	*os.File
	size int64
}

func (b storeBlob) Size() int64 { return b.size }

// State tells one index.json from the next, which replaces it by a rename.
func (s storeSource) State() (string, error) {
	fi, err := os.Stat(filepath.Join(s.Dir(), "index.json"))
	if err != nil {
		return "", err
	}
	return fmt.Sprint(inode(fi), fi.ModTime().UnixNano(), fi.Size()), nil
}

// serveBlob sends b, or the ranges of it that the client asks for. When reading
// fails in the middle, the connection ends before the promised length: no
// client takes half a blob for a whole one.
func (c *call) serveBlob(h v1.Hash, b Blob) {
	head(c.w, h, "application/octet-stream")
	w := &watched{Blob: b}
	serveContent(c.w, c.r, w)
	if w.err != nil && c.r.Context().Err() == nil {
		c.log.Error("registry", "method", c.r.Method, "path", c.r.URL.Path, "err", w.err)
		panic(http.ErrAbortHandler)
	}
}

// watched remembers the error of a read.
type watched struct {
	Blob
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Blob.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// inode tells files apart that have the same time and size.
func inode(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
