package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	airgapmanifests "github.com/clawbox/clawbox/airgap-manifests"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/spf13/cobra"
)

func bundleCmd(a *app) *cobra.Command {
	var o bundle.BuildOptions
	var keys []string
	var partSize string
	var asJSON bool
	c := &cobra.Command{
		Use:   "bundle -f RECIPE.yaml -o DIR --key NAME.key",
		Short: "Pack everything that a recipe names into one signed bundle",
		Long: `Pack everything that a recipe names into one signed bundle.

Tags and files are pinned in bundle.lock beside the recipe; with the same lock
the bundle is the same, byte for byte. What was fetched stays in the work store,
so that an interrupted run goes on where it was. Registry credentials come from
the usual keychain and are written nowhere.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := bundle.LoadRecipe(o.Recipe); err != nil {
				return usageError{err}
			}
			var err error
			if o.PartSize, err = parseSize(partSize); err != nil {
				return usageError{fmt.Errorf("--part-size: %w", err)}
			}
			for _, k := range keys {
				s, err := manifest.LoadSigner(k)
				if err != nil {
					return err
				}
				o.Signers = append(o.Signers, s)
			}
			p := bundle.NewProgress(cmd.ErrOrStderr(), isTerminal(cmd.ErrOrStderr()))
			defer p.Close()
			o.Progress = p
			rel, err := bundle.Build(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				a.output = "json"
			}
			return a.print(cmd.OutOrStdout(), rel, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s %s (sequence %d), %d items, %s in %d parts\n",
					o.Out, rel.Name, rel.Version, rel.Sequence, len(rel.Items), bundle.Size(rel.Size()), len(rel.Parts))
			})
		},
	}
	f := c.Flags()
	f.StringVarP(&o.Recipe, "file", "f", "", "the recipe")
	f.StringVarP(&o.Out, "output", "o", "", "directory to write the bundle into")
	f.StringArrayVar(&keys, "key", nil, "private key to sign with (repeatable)")
	f.StringVar(&o.Store, "store", "", "work store (default: in the user's cache directory)")
	f.StringVar(&o.Lock, "lock", "", "the lock file (default: bundle.lock beside the recipe)")
	f.BoolVar(&o.UpdateLock, "update-lock", false, "resolve everything anew and write the lock")
	f.StringVar(&partSize, "part-size", "", "size of a part, such as 2GiB (default: just below 4GiB, for FAT32)")
	f.BoolVar(&asJSON, "json", false, "print the release as JSON")
	for _, name := range []string{"file", "output", "key"} {
		c.MarkFlagRequired(name)
	}
	return c
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// parseSize reads bytes with a binary unit; nothing is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for _, u := range sizeUnits {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(num, 10, 32)
		if err == nil && n > 0 {
			return n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("got %q, want a whole number with KiB, MiB or GiB, such as 512MiB", s)
}

func verifyCmd(a *app) *cobra.Command {
	var keys []string
	c := &cobra.Command{
		Use:   "verify MEDIA...",
		Short: "Read a whole bundle and hold it to its signature",
		Long: `Read a whole bundle, once, and hold it to its signature.

MEDIA are the directories of one bundle, in any order. They are never written
to. Damage is named by part and offset (exit status 3).`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openMedia(keys, args)
			if err != nil {
				return err
			}
			p := bundle.NewProgress(cmd.ErrOrStderr(), isTerminal(cmd.ErrOrStderr()))
			defer p.Close()
			if err := m.Verify(cmd.Context(), p); err != nil {
				return err
			}
			r := m.Release()
			v := map[string]any{"release": r.Name, "version": r.Version, "sequence": r.Sequence, "digest": m.Digest().String(), "signers": m.Signers(), "bytes": r.Size()}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "%s %s (sequence %d) holds: %s in %d parts, signed by %s\n",
					r.Name, r.Version, r.Sequence, bundle.Size(r.Size()), len(r.Parts), strings.Join(m.Signers(), ", "))
			})
		},
	}
	c.Flags().StringArrayVar(&keys, "key", nil, "file with a public key that the release must be signed by (repeatable)")
	return c
}

func openMedia(keys, dirs []string) (*bundle.Media, error) {
	if len(keys) == 0 {
		return nil, usageError{errors.New("no --key: name the public key (NAME.pub) that you trust; it must come another way than the stick")}
	}
	t, err := manifest.LoadTrust(keys...)
	if err != nil {
		return nil, err
	}
	return bundle.OpenMedia(t, dirs...)
}

func inspectCmd(a *app) *cobra.Command {
	var keys []string
	c := &cobra.Command{
		Use:   "inspect MEDIA...",
		Short: "Print what a bundle carries, without reading its payload",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var t manifest.Trust
			var err error
			if len(keys) > 0 {
				if t, err = manifest.LoadTrust(keys...); err != nil {
					return err
				}
			}
			info, err := bundle.Inspect(t, args...)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), info, func(w io.Writer) { info.Print(w) })
		},
	}
	c.Flags().StringArrayVar(&keys, "key", nil, "file with a public key to check the signature with (repeatable)")
	return c
}

func recipeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "recipe [NAME]",
		Short: "Print a recipe that ships with clawbox, to start from",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(airgapmanifests.Names(), "\n"))
				return err
			}
			b, err := airgapmanifests.Recipe(args[0])
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}
