package bundle

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// Load brings the bundle into the store in one pass over the parts. Every
// chunk is verified before a byte of it is used, and every byte is written
// once, to the place where it stays. Blobs that the store has are not read;
// so a load that was cut off goes on with the blob that it was at.
//
// The items' refs are set at the very end, when all of their blobs are there.
// On an error no ref has changed; the blobs that were complete stay.
func (m *Media) Load(ctx context.Context, s *content.Store, p Progress) error {
	need, total, err := m.missing(s)
	if err != nil {
		return err
	}
	if err := m.room(s, total); err != nil {
		return err
	}
	l := loader{m: m, s: s, task: orQuiet(p).Start("load "+m.release.Name, total)}
	err = m.stream(ctx, need, l.each)
	err = errors.Join(err, l.abort())
	l.task.Done(err)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return m.tag(s)
}

// missing lists the blobs that the store lacks, in the order of the media.
func (m *Media) missing(s *content.Store) (need []manifest.Blob, total int64, err error) {
	for _, b := range m.index.Blobs {
		if n, err := s.Stat(b.Digest); err == nil && n == b.Size {
			continue
		}
		need = append(need, b)
		total += b.Size
	}
	return need, total, nil
}

// Missing returns the number of bytes that Load would write to s.
func (m *Media) Missing(s *content.Store) (int64, error) {
	_, n, err := m.missing(s)
	return n, err
}

func (m *Media) room(s *content.Store, want int64) error {
	have, err := free(s.Dir())
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if have < want {
		return fmt.Errorf("load: the store %s has %s free, the bundle needs %s: free some, or put the store on a larger disk", s.Dir(), Size(have), Size(want))
	}
	return nil
}

// loader writes the chunks of one blob after the other.
type loader struct {
	m    *Media
	s    *content.Store
	task Task
	w    *content.Writer // the current blob, nil between blobs
}

func (l *loader) each(c chunk) (err error) {
	if c.err != nil {
		return c.err
	}
	if c.i == 0 {
		if l.w, err = l.s.Create(c.blob.Digest, c.blob.Size); err != nil {
			return err
		}
	}
	if _, err := l.w.Write(c.data); err != nil {
		return err
	}
	l.task.Add(int64(len(c.data)))
	if c.i < c.blob.Len()-1 {
		return nil
	}
	w := l.w
	l.w = nil
	if err := w.Commit(); errors.Is(err, content.ErrMismatch) {
		// The chunks are as signed and the blob is not: a broken builder.
		return l.m.damage(c.blob, err.Error(), place(l.m.release, c.blob, 0))
	} else if err != nil {
		return err
	}
	return nil
}

// abort drops a blob that was not finished.
func (l *loader) abort() error {
	if l.w == nil {
		return nil
	}
	return l.w.Abort()
}

// tag names the items in the store, after checking that all that they refer
// to is there.
func (m *Media) tag(s *content.Store) error {
	p := &pool{store: s}
	for _, it := range m.release.Items {
		if err := complete(p, it); err != nil {
			return fmt.Errorf("load: item %s: %w: the bundle was built incomplete; get another", it.Name, err)
		}
	}
	for _, it := range m.release.Items {
		if d, err := s.Resolve(it.Ref); err == nil && d.Digest == it.Descriptor.Digest && d.Size == it.Descriptor.Size {
			continue
		}
		if err := s.Tag(it.Ref, it.Descriptor); err != nil {
			return fmt.Errorf("load: item %s: %w", it.Name, err)
		}
	}
	return nil
}

// complete holds an item against the store.
func complete(p *pool, it manifest.Item) error {
	return walk(it.Descriptor, p.manifest, func(d v1.Descriptor) error {
		n, err := p.stat(d.Digest)
		if err == nil && n != d.Size {
			err = fmt.Errorf("blob %s has %d bytes, its manifest says %d", d.Digest, n, d.Size)
		}
		return err
	})
}
