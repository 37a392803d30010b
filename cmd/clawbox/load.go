package main

import (
	"fmt"
	"io"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/installer"
	"github.com/spf13/cobra"
)

func loadCmd(a *app) *cobra.Command {
	var m mediaFlags
	var o bundle.LoadOptions
	var dir string
	c := &cobra.Command{
		Use:   "load MEDIA... --store DIR --key NAME.pub",
		Short: "Bring a bundle's content into a store, without installing it",
		Long: `Bring a bundle's content into a store, without installing it.

The store is an OCI image layout, which clawbox's registry serves and crane and
skopeo read; it is made when it isn't there. Every chunk is verified before it is
used, and what the store has is not read again. A load that was interrupted goes
on when the same command is run again, and one that finds another load at work
in the store waits for it. In the store of an installed appliance the names stay
where they lead: 'clawbox upgrade' is what moves them.

With --item the layout gets no more than that, such as one image for skopeo.
'clawbox registry serve --media' shows all of a bundle without any copy.`,
		Example: `  clawbox load /media/stick --store layout --key acme.pub --item web
  skopeo copy oci:layout:web:1.2 docker-archive:web.tar`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			manyProcs()
			m, err := m.open(args)
			if err != nil {
				return err
			}
			s, err := content.Open(dir)
			if err != nil {
				return err
			}
			o.Beside = installer.Runs(a.root, dir)
			p := progress(cmd)
			defer p.Close()
			o.Progress = p
			if o.Beside {
				fmt.Fprintln(p, "an appliance is installed on this store: names lead where they led; 'clawbox upgrade' moves them")
			}
			o.Warn = func(err error) { fmt.Fprintf(p, "warning: %v\n", err) }
			o.Waiting = func(h content.Holder) { fmt.Fprintf(p, "the store is in use by %s; waiting for it\n", h) }
			if err := m.LoadWith(cmd.Context(), s, o); err != nil {
				return err
			}
			r, n := m.Release(), len(o.Items)
			if n == 0 {
				n = len(r.Items)
			}
			v := map[string]any{"release": r.Name, "version": r.Version, "digest": m.Digest().String(), "bytes": r.Size(), "store": dir, "items": n}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s %s, %d of %d items, %s on the media\n", dir, r.Name, r.Version, n, len(r.Items), bundle.Size(r.Size()))
			})
		},
	}
	f := c.Flags()
	m.add(c)
	f.StringArrayVar(&o.Items, "item", nil, "load this item only, by its name in the release (repeatable)")
	f.StringVar(&dir, "store", "", "the store's directory")
	_ = c.MarkFlagRequired("store")
	return c
}
