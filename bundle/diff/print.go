package diff

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/internal/legible"
)

// unverified heads a side that nobody vouches for.
const unverified = "SIGNATURE NOT CHECKED: no key given (--key); anybody may have made this bundle"

// Print writes the report for people.
func (r Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range []struct {
		what string
		Release
	}{{"from", r.A}, {"to", r.B}} {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.what, s.From, s.title(), s.trust())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, it := range r.Items {
		it.print(w)
	}
	fmt.Fprintf(w, "%d items change, %d stay as they are\n", len(r.Items), r.Same)
	r.Blobs.print(w, r.B)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", legible.Line(n))
	}
	return nil
}

func (r Release) title() string {
	if r.Name == "" {
		return "no release"
	}
	s := fmt.Sprintf("%s %s (sequence %d)", r.Name, r.Version, r.Sequence)
	if r.Base != "" {
		s += ", a difference to " + r.Base
	}
	return s
}

func (r Release) trust() string {
	switch {
	case !r.Verified:
		return unverified
	case len(r.Signers) == 0:
		return "as installed"
	}
	return "signed by " + strings.Join(r.Signers, ", ")
}

func (it Item) print(w io.Writer) {
	line := func(format string, args ...any) { fmt.Fprintln(w, "  "+legible.Line(fmt.Sprintf(format, args...))) }
	fmt.Fprintln(w, legible.Line(fmt.Sprintf("%s %s %s: %s", it.Change, it.Kind, it.Name, sizes(it.A, it.B))))
	for _, s := range it.About {
		line("%s", s)
	}
	if l := it.Layers; l != nil {
		line("layers: %d, was %d; %d are shared (%s), the others have %s", l.B, l.A, l.Shared, bundle.Size(l.SharedBytes), bundle.Size(l.NewBytes))
	}
	for _, f := range it.Files {
		line("%s %s: %s, was %s", f.Change, f.Name, bundle.Size(f.B), bundle.Size(f.A))
	}
	for _, p := range it.Policy {
		line("%s", p)
	}
	if it.Source != "" {
		line("packages that change, by %s: %d", it.Source, len(it.Packages))
	}
	for _, p := range it.Packages {
		line("  %s %s %s%s: %s, was %s", p.Change, p.Type, p.Name, p.about(), versionsOf(p.B), versionsOf(p.A))
	}
}

func (p Package) about() (s string) {
	if p.Arch != "" {
		s += " " + p.Arch
	}
	if p.Source != "" {
		s += " (source " + p.Source + ")"
	}
	return s
}

func versionsOf(vs []string) string { return orNone(strings.Join(vs, ", ")) }

func sizes(a, b *Root) string {
	switch {
	case a == nil:
		return fmt.Sprintf("%s as %s", bundle.Size(b.Size), b.Ref)
	case b == nil:
		return fmt.Sprintf("was %s as %s", bundle.Size(a.Size), a.Ref)
	}
	return fmt.Sprintf("%s as %s, was %s as %s", bundle.Size(b.Size), b.Ref, bundle.Size(a.Size), a.Ref)
}

func (b Blobs) print(w io.Writer, to Release) {
	fmt.Fprintf(w, "%d blobs of %s are new; %d of %s are there already; %d of %s go\n",
		b.Missing.Count, bundle.Size(b.Missing.Bytes), b.Same.Count, bundle.Size(b.Same.Bytes), b.Gone.Count, bundle.Size(b.Gone.Bytes))
	if b.Chunks != nil && b.Missing.Count > 0 {
		fmt.Fprintf(w, "in chunks, %s are new: what a differential bundle would carry\n", bundle.Size(*b.Chunks))
	}
	if n := b.BaseMissing; n.Count > 0 {
		fmt.Fprintf(w, "WITHOUT %s THIS CAN'T BE LOADED: %d blobs of %s build upon it and are not there\n", to.Base, n.Count, bundle.Size(n.Bytes))
	}
}
