package main

import (
	"fmt"
	"io"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/spf13/cobra"
)

func loadCmd(a *app) *cobra.Command {
	var keys []string
	var dir string
	c := &cobra.Command{
		Use:   "load MEDIA... --store DIR --key NAME.pub",
		Short: "Bring a bundle's content into a store, without installing it",
		Long: `Bring a bundle's content into a store, without installing it.

The store is an OCI image layout, which clawbox's registry serves and crane and
skopeo read; it is made when it isn't there. Every chunk is verified before it is
used, and what the store has is not read again. A load that was interrupted goes
on when the same command is run again.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMedia(keys, args)
			if err != nil {
				return err
			}
			s, err := content.Open(dir)
			if err != nil {
				return err
			}
			p := bundle.NewProgress(cmd.ErrOrStderr(), isTerminal(cmd.ErrOrStderr()))
			defer p.Close()
			if err := m.Load(cmd.Context(), s, p); err != nil {
				return err
			}
			r := m.Release()
			v := map[string]any{"release": r.Name, "version": r.Version, "digest": m.Digest().String(), "bytes": r.Size(), "store": dir}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s %s, %d items, %s\n", dir, r.Name, r.Version, len(r.Items), bundle.Size(r.Size()))
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&keys, "key", nil, "file with a public key that the release must be signed by (repeatable)")
	f.StringVar(&dir, "store", "", "the store's directory")
	_ = c.MarkFlagRequired("store")
	return c
}
