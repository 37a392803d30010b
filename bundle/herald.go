package bundle

import (
	"context"
	"errors"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// herald finds out which items are complete while blobs arrive, and says so in
// a goroutine of its own.
type herald struct {
	pool  *pool
	items []watched // not complete yet, in the order of the release

	ready  chan manifest.Item // nil when nobody listens
	done   chan struct{}
	failed error // of the listener; read after done
}

// watched is an item and what of it was not seen in the store yet, the next
// one last.
type watched struct {
	item manifest.Item
	todo []v1.Descriptor
	seen map[v1.Hash]bool // manifests: indexes that name each other often are opened once
}

// newHerald begins to listen. An error of ready ends the load by cancel.
func newHerald(ctx context.Context, m *Media, s *content.Store, ready func(context.Context, manifest.Item) error, cancel func(error)) *herald {
	h := &herald{pool: &pool{store: s}}
	if ready == nil {
		return h
	}
	for _, it := range m.release.Items {
		h.items = append(h.items, watched{it, []v1.Descriptor{it.Descriptor}, map[v1.Hash]bool{}})
	}
	// As many places as items: the load never waits for its listener.
	h.ready, h.done = make(chan manifest.Item, len(h.items)), make(chan struct{})
	go func() {
		defer close(h.done)
		for it := range h.ready {
			if h.failed == nil && ctx.Err() == nil {
				if h.failed = ready(ctx, it); h.failed != nil {
					cancel(h.failed)
				}
			}
		}
	}()
	return h
}

// next looks again, after a blob has come. Each descriptor is looked at once
// when it is there, so an item of a thousand layers costs a thousand looks.
func (h *herald) next() error {
	rest := h.items[:0]
	for _, w := range h.items {
		if err := h.advance(&w); errors.Is(err, fs.ErrNotExist) {
			rest = append(rest, w)
		} else if err != nil {
			return err
		} else {
			h.ready <- w.item
		}
	}
	h.items = rest
	return nil
}

// advance goes on until something is not there: fs.ErrNotExist.
func (h *herald) advance(w *watched) error {
	for len(w.todo) > 0 {
		d := w.todo[len(w.todo)-1]
		if _, err := h.pool.stat(d.Digest); err != nil {
			return err
		}
		w.todo = w.todo[:len(w.todo)-1]
		if w.seen[d.Digest] || d.Digest != w.item.Descriptor.Digest && !isManifest(d) {
			continue
		}
		w.seen[d.Digest] = true
		raw, err := h.pool.manifest(d)
		if err != nil {
			return err
		}
		cs, err := children(d, raw)
		if err != nil {
			return err
		}
		for i := range cs { // the first child is looked for first
			w.todo = append(w.todo, cs[len(cs)-1-i])
		}
	}
	return nil
}

// end waits for the listener. Its error is the load's, which it has ended.
func (h *herald) end(err error) error {
	if h.ready == nil {
		return err
	}
	close(h.ready)
	<-h.done
	if h.failed != nil {
		return h.failed
	}
	return err
}
