// Package serve is a bundle as a registry's source, so that ordinary tools see
// the media without a copy:
//
//	src, err := serve.Media(ctx, m, log)    // m of bundle.OpenMedia: verified
//	h, err := registry.Of(src, registry.Options{})
//	http.ListenAndServe("127.0.0.1:5000", h)
//	crane pull 127.0.0.1:5000/web:1.2 web.tar
//
// Nothing is written. A blob is a range of parts; each chunk of 4 MiB is proved
// before a byte of it is sent, so a range of one byte costs the reading of a
// chunk. Damage that can't be read again or rebuilt from parity ends the
// connection before the promised length, and is logged with part and offset.
//
// What a differential bundle leaves out is answered with 404 and the name of
// the release that has it.
//
// Limits: as many blobs as Readers are read at a time, and Clients are sent to; who
// asks for another one waits until one of them has got its blob, or has taken too
// long for a part of it (package registry).
package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/registry"
)

// Readers bounds how many chunks are read at a time, and Clients how many blobs
// are sent, at some 12 MiB of memory each: a client that does not take what it
// asked for keeps a place and no reader.
const (
	Readers = 8
	Clients = 32
)

// Source is a bundle as a registry.Source.
type Source struct {
	m             *bundle.Media
	refs          []v1.Descriptor
	log           *slog.Logger
	turns, places chan struct{} // of readers and of clients
}

// Media reads the bundle's manifests and makes a source of it. It logs which
// parts are lost and which items can't be served whole.
func Media(ctx context.Context, m *bundle.Media, log *slog.Logger) (*Source, error) {
	refs, err := m.Refs(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range m.Lost() {
		log.Warn("a part is lost, and is rebuilt from parity while it is served", "part", name)
	}
	for _, it := range m.Release().Items {
		if err := m.Holds(ctx, it); err != nil {
			log.Warn("not served whole", "item", it.Ref, "err", err)
		}
	}
	return &Source{m, refs, log, make(chan struct{}, Readers), make(chan struct{}, Clients)}, nil
}

// Refs are the items, and what refers to them.
func (s *Source) Refs() ([]v1.Descriptor, error) { return s.refs, nil }

// State never changes, as no bundle does.
func (s *Source) State() (string, error) { return s.m.Digest().String(), nil }

// Open opens a blob; it is read when the client reads.
func (s *Source) Open(ctx context.Context, h v1.Hash) (registry.Blob, error) {
	b, err := s.m.OpenBlob(ctx, h, func(err error) { s.log.Warn("media", "err", err) })
	switch {
	case errors.Is(err, manifest.ErrNoBase):
		r := s.m.Release()
		return nil, &registry.ElsewhereError{Words: fmt.Sprintf("it is not on these media: %s %s is a difference to %s; load that release and then this one into a store, and serve the store",
			r.Name, r.Version, r.Base)}
	case errors.Is(err, fs.ErrNotExist):
		return nil, fs.ErrNotExist
	case err != nil:
		return nil, err
	}
	return &blob{Blob: b, ctx: ctx, s: s}, nil
}

// blob takes a place when it is first read, and a turn for each chunk.
type blob struct {
	*bundle.Blob
	ctx   context.Context
	s     *Source
	place bool
}

// Read is io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if b.Has() {
		return b.Blob.Read(p)
	}
	if !b.place {
		if err := b.take(b.s.places); err != nil {
			return 0, err
		}
		b.place = true
	}
	if err := b.take(b.s.turns); err != nil {
		return 0, err
	}
	defer func() { <-b.s.turns }()
	return b.Blob.Read(p)
}

// take waits for one of what c bounds.
func (b *blob) take(c chan struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// Close gives the place back.
func (b *blob) Close() error {
	err := b.Blob.Close()
	if b.place {
		b.place = false
		<-b.s.places
	}
	return err
}
