package diff

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/policies"
)

// content compares what lies below an item, as far as it can be read.
func (d *comparison) content(p couple, it *Item) error {
	if d.a.absent || d.b.absent {
		return d.ctx.Err() // said once, for all items
	}
	x, aerr := d.a.leaves(d.ctx, p.a)
	y, berr := d.b.leaves(d.ctx, p.b)
	if err := errors.Join(aerr, berr); err != nil {
		d.note("%s: its manifests could not be read on both sides: %v", it.Name, err)
		return d.ctx.Err()
	}
	switch it.Kind {
	case "image":
		it.Layers = layers(x, y)
		d.packages(p, it)
	case "policy":
		if err := d.policy(x, y, it); err != nil {
			d.note("%s: the policies were not compared: %v", it.Name, err)
		}
	default:
		it.Files = files(x, y)
	}
	return d.ctx.Err()
}

func layers(x, y []leaf) *Layers {
	out := &Layers{A: len(x), B: len(y)}
	old := map[v1.Hash]bool{}
	for _, l := range x {
		old[l.desc.Digest] = true
	}
	for _, l := range y {
		if old[l.desc.Digest] {
			out.Shared, out.SharedBytes = out.Shared+1, out.SharedBytes+l.desc.Size
		} else {
			out.NewBytes += l.desc.Size
		}
	}
	return out
}

// files compares layers by their titles.
func files(x, y []leaf) (out []File) {
	old := map[string]v1.Descriptor{}
	for _, l := range x {
		old[l.name] = l.desc
	}
	for _, l := range y {
		o, ok := old[l.name]
		delete(old, l.name)
		switch {
		case !ok:
			out = append(out, File{l.name, Added, 0, l.desc.Size})
		case o.Digest != l.desc.Digest:
			out = append(out, File{l.name, Changed, o.Size, l.desc.Size})
		}
	}
	for name, o := range old {
		out = append(out, File{name, Removed, o.Size, 0})
	}
	slices.SortFunc(out, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// policy says in words what another policy lets agents do.
func (d *comparison) policy(x, y []leaf, it *Item) error {
	if len(x) != 1 || len(y) != 1 {
		return fmt.Errorf("%d and %d files, want one each", len(x), len(y))
	}
	var ps [2]*policies.Policy
	for i, l := range []leaf{x[0], y[0]} {
		b, err := []*Side{d.a, d.b}[i].read(d.ctx, l.desc, maxPolicy)
		if err != nil {
			return err
		}
		if ps[i], err = policies.Parse(l.name, b); err != nil {
			return err
		}
	}
	it.Policy = policies.Diff(ps[0], ps[1])
	return nil
}
