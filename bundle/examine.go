package bundle

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/legible"
)

// blobOf is a blob of an item.
type blobOf struct {
	v1.Descriptor
	as   string
	name string // for messages
}

// blobs lists what an item consists of, each blob once.
func (b *build) blobs(i int) (out []blobOf, err error) {
	seen := map[v1.Hash]bool{}
	err = walk(b.items[i].root, b.pool.manifest, func(d v1.Descriptor) error {
		if seen[d.Digest] {
			return nil
		}
		seen[d.Digest] = true
		x := blobOf{d, lookAs(b.recipe.Items[i].Kind, d), d.Annotations[titleNote]}
		switch {
		case x.as == asLayer:
			x.name = fmt.Sprintf("layer %.12s", d.Digest.Hex)
		case x.as == asImage:
			x.name = "configuration"
		case x.name == "":
			x.name = fmt.Sprintf("blob %.12s", d.Digest.Hex)
		}
		x.name = legible.Line(x.name)
		out = append(out, x)
		return nil
	})
	return out, err
}

// lookInto looks into what came without being looked into, such as the blobs of
// a layout, and lists the blobs of each item. What was seen before is not read
// again, and layers that come later are looked into then.
func (b *build) lookInto(ctx context.Context) (all [][]blobOf, err error) {
	release, err := b.pool.store.Hold() // what came must not be collected meanwhile
	if err != nil {
		return nil, err
	}
	defer release()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	begun := map[string]bool{}
	for i, it := range b.recipe.Items {
		bs, err := b.blobs(i)
		if err != nil {
			return nil, fmt.Errorf("item %s: %w", it.Name, err)
		}
		all = append(all, bs)
		for _, x := range bs {
			key := lookKey(x.Digest, x.as)
			if _, ok := b.pool.looks.get(x.Digest, x.as); ok || x.as == asText || x.as == asImage || begun[key] {
				continue
			}
			if l, ok := b.pool.late[x.Digest]; ok && l.as == x.as || b.pool.stands(x.Digest) {
				continue
			}
			begun[key] = true
			g.Go(func() error {
				if err := b.lookAt(gctx, x.Descriptor, x.as, it.Name+" "+x.name); err != nil {
					return fmt.Errorf("item %s, %s: %w", it.Name, x.name, err)
				}
				return nil
			})
		}
	}
	return all, g.Wait()
}

// refuseKeys gathers what was found and the recipe doesn't allow.
func (b *build) refuseKeys(all [][]blobOf) error {
	var bad []licence.Finding
	for i, bs := range all {
		it := b.recipe.Items[i]
		var ok []string
		for _, k := range it.AllowedKeys {
			ok = append(ok, k.Fingerprint)
		}
		report := licence.Allow(ok, &bad)
		for _, x := range bs {
			if err := b.findings(it.Name, x, report); err != nil {
				return fmt.Errorf("item %s: %w", it.Name, err)
			}
		}
	}
	if len(bad) > 0 {
		return &licence.SecretError{Findings: bad}
	}
	return nil
}

// findings reports what is known of a blob, and looks at small ones.
func (b *build) findings(item string, x blobOf, report func(licence.Finding)) error {
	at := licence.Place{Item: item, File: x.name}
	if x.as == asText || x.as == asImage {
		raw, err := b.pool.manifest(x.Descriptor)
		if err != nil {
			return err
		}
		if x.as == asImage {
			return licence.ScanConfig(at, raw, report)
		}
		s := licence.NewScanner(at, report)
		s.Write(raw)
		return s.Close()
	}
	l, ok := b.pool.looks.get(x.Digest, x.as)
	if !ok {
		return fmt.Errorf("%s was not looked into", x.name) // a fault of ours: closed
	}
	for _, f := range l.Found {
		p := at
		if f.File != "" {
			p.File += ", " + f.File
		}
		report(licence.Finding{Place: p, Rule: f.Rule, Offset: f.Offset, Fingerprint: f.Fingerprint})
	}
	if l.More { // no fingerprint allows it
		report(licence.Finding{Place: at, Rule: fmt.Sprintf("more than %d findings, too many to allow any", licence.MaxFindings), Fingerprint: "none"})
	}
	return nil
}

// allowedKeys is what the release says of them.
func allowedKeys(it Item) (out []manifest.AllowedKey) {
	for _, k := range it.AllowedKeys {
		k.Line = 0
		out = append(out, k)
	}
	return out
}

func newLooks(c *cache) *looks { return &looks{cache: c, done: map[string]look{}} }
