package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/clawbox/clawbox/bundle/diff"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer"
	"github.com/spf13/cobra"
)

// hostSide is the word for the installed appliance.
const hostSide = "host"

func diffCmd(a *app) *cobra.Command {
	var f mediaFlags
	var o diff.Options
	c := &cobra.Command{
		Use:   "diff [A] B",
		Short: "Say what changes from one bundle, or from this host, to another",
		Long: `Say what changes from A to B: images, models, files and policies that come, go or
change; what agents may do by changed policies; packages; blobs and bytes that B
needs and A lacks.

A and B are directories of a bundle (several sticks of one are joined with
commas; release.note and index.json alone will do), or "host", what the appliance
below --root has. Without A it is "host".

Signatures are checked with --key, and on an installed host without it by the
host's own keys; otherwise the result says loudly that nobody vouches for it.

Only the two small files, manifests and policies are read, and SBOMs where a
bundle carries them. --packages also reads the layers of images that changed, for
packages; without it and without SBOMs packages are not compared. What is not
compared is said. The exit status is 0 whether or not anything differs.

-o json prints (sizes are bytes, lists are never null):

  a, b    each side: from, name, version, sequence, digest, verified, signers, base
  same    how many items stay as they are
  items   the others: name, kind, change (added, removed, changed); a and b with ref,
          digest, size; about (words); layers (a, b, shared, sharedBytes, newBytes);
          files (name, change, a, b); policy (kind, field, words); packages (type,
          name, arch, source, change, a and b: versions) and packagesSource (sbom,
          layers, or "" when they were not compared)
  blobs   same, missing, gone, baseMissing, each with count and bytes;
          missingChunkBytes, null when A has no index
  notes   what was not compared, and why`,
		Example: `  clawbox diff /media/old /media/new --key acme.pub
  clawbox diff /media/new
  clawbox diff host /media/new --packages`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				args = []string{hostSide, args[0]}
			}
			if args[0] == hostSide && args[1] == hostSide {
				return usageError{errors.New("both sides are the host: want a bundle on one of them")}
			}
			var sides [2]*diff.Side
			for i, s := range args {
				var err error
				if sides[i], err = side(cmd, a, f, s); err != nil {
					return err
				}
			}
			r, err := diff.Compare(cmd.Context(), sides[0], sides[1], o)
			if err != nil {
				return err
			}
			for _, s := range []diff.Release{r.A, r.B} {
				if !s.Verified {
					fmt.Fprintf(cmd.ErrOrStderr(), "clawbox: %s: SIGNATURE NOT CHECKED: name the publisher's key with --key\n", s.From)
				}
			}
			return a.print(cmd.OutOrStdout(), r, func(w io.Writer) { r.Print(w) })
		},
	}
	f.add(c)
	c.Flags().BoolVar(&o.Packages, "packages", false, "read the layers of changed images for packages, where there is no SBOM")
	return c
}

// side opens what was named.
func side(cmd *cobra.Command, a *app, f mediaFlags, name string) (*diff.Side, error) {
	if name != hostSide {
		o, err := f.options(strings.Split(name, ","))
		if err != nil {
			return nil, err
		}
		if o.Trust.Empty() {
			if o.Trust, err = hostTrust(a); err != nil {
				return nil, err
			}
		}
		c, err := o.Look()
		if err != nil {
			return nil, err
		}
		return diff.Bundle(cmd.Context(), name, c)
	}
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	s, err := existingStore(a, cfg.Paths.Store)
	if err != nil {
		return nil, err
	}
	r := cfg.Release
	return diff.Host(cmd.Context(), name, s, diff.Release{Name: r.Name, Version: r.Version, Sequence: r.Sequence, Digest: r.Digest, Verified: true})
}

// hostTrust is the installed appliance's; none where nothing is installed.
func hostTrust(a *app) (manifest.Trust, error) {
	if _, err := a.config(); errors.Is(err, fs.ErrNotExist) {
		return manifest.Trust{}, nil
	}
	t, _, err := installer.Trust(a.root, 0)
	return t, err
}
