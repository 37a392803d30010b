package bundle

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// herald finds out which items are complete while blobs arrive, and says so in
// a goroutine of its own.
type herald struct {
	pool  *pool
	items []*watched             // of which nothing was looked at yet
	waits map[v1.Hash][]*watched // not complete, by the blob that each waits for

	ready  chan manifest.Item // nil when nobody listens
	done   chan struct{}
	failed error // of the listener; read after done
}

// watched is an item and what of it was not seen in the store yet, the next
// one last.
type watched struct {
	place int // in the release
	item  manifest.Item
	todo  []v1.Descriptor
	seen  map[v1.Hash]bool // manifests: indexes that name each other often are opened once
}

// newHerald begins to listen. An error of ready ends the load by cancel.
func newHerald(ctx context.Context, m *Media, s *content.Store, ready func(context.Context, manifest.Item) error, cancel func(error)) *herald {
	h := &herald{pool: &pool{store: s}, waits: map[v1.Hash][]*watched{}}
	if ready == nil {
		return h
	}
	for i, it := range m.release.Items {
		h.items = append(h.items, &watched{i, it, []v1.Descriptor{it.Descriptor}, map[v1.Hash]bool{}})
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

// begin looks at what the store has already.
func (h *herald) begin() error {
	all := h.items
	h.items = nil
	return h.look(all)
}

// next looks again at those that wait for a blob, which has come. Each descriptor
// is looked at once when it is there, so an item of a thousand layers costs a
// thousand looks, however many items there are.
func (h *herald) next(came v1.Hash) error {
	woken := h.waits[came]
	delete(h.waits, came)
	slices.SortFunc(woken, func(a, b *watched) int { return a.place - b.place })
	return h.look(woken)
}

func (h *herald) look(ws []*watched) error {
	for _, w := range ws {
		if err := h.advance(w); errors.Is(err, fs.ErrNotExist) && len(w.todo) > 0 {
			d := w.todo[len(w.todo)-1].Digest
			h.waits[d] = append(h.waits[d], w)
		} else if err != nil {
			return err
		} else {
			h.ready <- w.item
		}
	}
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
