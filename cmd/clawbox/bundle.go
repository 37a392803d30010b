package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	airgapmanifests "github.com/clawbox/clawbox/airgap-manifests"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/spf13/cobra"
)

// buildFlags are the command line of bundle.
type buildFlags struct {
	bundle.BuildOptions
	outs, keys, roots     []string
	sinceKeys, identities []string
	partSize, since       string
	json                  bool
}

func bundleCmd(a *app) *cobra.Command {
	var b buildFlags
	c := &cobra.Command{
		Use:   "bundle -f RECIPE.yaml -o DIR --key NAME.key",
		Short: "Pack everything that a recipe names into one signed bundle",
		Long: `Pack everything that a recipe names into one signed bundle.

Tags and files are pinned in bundle.lock beside the recipe; with the same lock
the bundle is the same, byte for byte (unless it is encrypted). What was fetched
lies on the media or stays in the work store, so that an interrupted run goes on
where it was, and what has not changed since the last build is not read again. Registry
credentials come from the usual keychain and are written nowhere.

What the recipe doesn't mark as redistributable, and what has terms, is refused
until somebody decides otherwise: --accept-terms says that the text was read and
accepted, --for-own-use that the item goes to hosts of the same organisation
only, and --by who says so. The decision is kept in bundle.lock and stands in the
release. Key material is refused wherever it is found (exit status 4).

With several -o the parts are spread over the directories, each filled up to
its free space or to the size given as -o DIR=SIZE. With --since only what hosts
with that release lack is written.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd, a) },
	}
	f := c.Flags()
	f.StringVarP(&b.Recipe, "file", "f", "", "the recipe")
	f.StringArrayVarP(&b.outs, "output", "o", nil, "directory to write the bundle into, or DIR=SIZE (repeatable: several sticks)")
	f.StringArrayVar(&b.keys, "key", nil, "private key to sign with (repeatable)")
	f.StringArrayVar(&b.roots, "root-note", nil, "root of the chain to put on the media, from version 1 on (repeatable); see clawbox key root")
	f.StringVar(&b.Store, "store", "", "work store (default: in the user's cache directory)")
	f.StringVar(&b.Lock, "lock", "", "the lock file (default: bundle.lock beside the recipe)")
	f.BoolVar(&b.UpdateLock, "update-lock", false, "resolve everything anew and write the lock")
	f.BoolVar(&b.Rehash, "rehash", false, "read and write everything anew, though nothing seems to have changed")
	f.StringVar(&b.partSize, "part-size", "", "size of a part, such as 2GiB (default: just below 4GiB, for FAT32)")
	f.IntVar(&b.Parity, "parity", 0, "parity parts to add: as many parts as that may be lost or damaged")
	f.StringArrayVar(&b.Recipients, "recipient", nil, "encrypt to this age or ssh public key, or to those in this file (repeatable)")
	f.StringVar(&b.since, "since", "", "leave out what this release has: a directory with its release.note and index.json")
	f.StringArrayVar(&b.sinceKeys, "since-key", nil, "public key, one of which signed that release, or a root (repeatable; default: the keys of --key)")
	f.StringArrayVar(&b.identities, "identity", nil, "file with the identity that opens that release, if it is encrypted (repeatable)")
	f.StringArrayVar(&b.Consent.Terms, "accept-terms", nil, "record that the terms of this item were read and accepted (repeatable)")
	f.StringArrayVar(&b.Consent.OwnUse, "for-own-use", nil, "record that this item goes to hosts of the same organisation only (repeatable)")
	f.StringVar(&b.Consent.By, "by", "", "who decides: a name, for --accept-terms and --for-own-use")
	f.BoolVar(&b.json, "json", false, "print the release as JSON")
	for _, name := range []string{"file", "output", "key"} {
		c.MarkFlagRequired(name)
	}
	return c
}

func (b *buildFlags) run(cmd *cobra.Command, a *app) error {
	manyProcs()
	if _, err := bundle.LoadRecipe(b.Recipe); err != nil {
		return usageError{err}
	}
	if err := b.options(); err != nil {
		return err
	}
	p := progress(cmd)
	defer p.Close()
	b.Progress = p
	rel, err := bundle.Build(cmd.Context(), b.BuildOptions)
	if err != nil {
		return err
	}
	if b.json {
		a.output = "json"
	}
	return a.print(cmd.OutOrStdout(), rel, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s %s (sequence %d), %d items, %s in %d parts\n",
			b.Out, rel.Name, rel.Version, rel.Sequence, len(rel.Items), bundle.Size(rel.Size()), len(rel.Parts))
	})
}

// options turns what was typed into BuildOptions.
func (b *buildFlags) options() (err error) {
	if b.PartSize, err = parseSize(b.partSize); err != nil {
		return usageError{fmt.Errorf("--part-size: %w", err)}
	}
	if decides := len(b.Consent.Terms)+len(b.Consent.OwnUse) > 0; decides != (b.Consent.By != "") {
		return usageError{errors.New("--by names who decides, and goes with --accept-terms or --for-own-use: give both or neither")}
	}
	if b.Parity < 0 {
		return usageError{fmt.Errorf("--parity: got %d, want 0 or more", b.Parity)}
	}
	for i, o := range b.outs {
		dir, size, _ := strings.Cut(o, "=")
		n, err := parseSize(size)
		if err != nil {
			return usageError{fmt.Errorf("-o %s: %w", o, err)}
		}
		if i == 0 {
			b.Out, b.OutSize = dir, n
			continue
		}
		b.More = append(b.More, bundle.Output{Dir: dir, Size: n})
	}
	for _, k := range b.keys {
		s, err := manifest.LoadSigner(k)
		if err != nil {
			return err
		}
		b.Signers = append(b.Signers, s)
	}
	for _, r := range b.roots {
		note, err := os.ReadFile(r)
		if err != nil {
			return fmt.Errorf("--root-note: %w", err)
		}
		b.Roots = append(b.Roots, note)
	}
	return b.openSince()
}

func (b *buildFlags) openSince() (err error) {
	if b.since == "" {
		return nil
	}
	var t manifest.Trust
	if len(b.sinceKeys) > 0 {
		t, err = manifest.LoadTrust(b.sinceKeys...)
	} else {
		var keys []string
		for _, s := range b.Signers {
			keys = append(keys, s.Key())
		}
		t, err = manifest.NewTrust(1, keys...)
	}
	if err != nil {
		return err
	}
	ids, err := bundle.LoadIdentities(b.identities...)
	if err != nil {
		return err
	}
	b.Since, err = bundle.OpenSince(t, b.since, ids...)
	return err
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
	var f mediaFlags
	c := &cobra.Command{
		Use:   "verify MEDIA...",
		Short: "Read a whole bundle and hold it to its signature",
		Long: `Read a whole bundle, once, and hold it to its signature.

MEDIA are the directories of one bundle, in any order. They are never written
to. Damage is named by part and offset (exit status 3).`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			manyProcs()
			m, err := f.open(args)
			if err != nil {
				return err
			}
			p := progress(cmd)
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
	f.add(c)
	return c
}

// mediaFlags are those of every verb that reads a bundle.
type mediaFlags struct {
	keys, identities []string
	threshold        int
}

func (f *mediaFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.keys, "key", nil, "file with public keys, one of which must have signed the release (repeatable; see --threshold), or with a root")
	c.Flags().IntVar(&f.threshold, "threshold", 0, "how many of the keys must have signed (default 1; a root says itself)")
	c.Flags().StringArrayVar(&f.identities, "identity", nil, "file with an age or ssh identity that the bundle is encrypted to (repeatable)")
}

// options reads the files; without keys the trust is empty.
func (f *mediaFlags) options(dirs []string) (o bundle.MediaOptions, err error) {
	o.Dirs = dirs
	if len(f.keys) > 0 {
		if o.Trust, err = manifest.LoadTrust(f.keys...); err != nil {
			return o, err
		}
	}
	if f.threshold != 0 {
		if o.Trust, err = o.Trust.Need(f.threshold); err != nil {
			return o, usageError{fmt.Errorf("--threshold: %w", err)}
		}
	}
	o.Identities, err = bundle.LoadIdentities(f.identities...)
	return o, err
}

func (f *mediaFlags) open(dirs []string) (*bundle.Media, error) {
	if len(f.keys) == 0 {
		return nil, usageError{errors.New("no --key: name the public key (NAME.pub) or the root that you trust; it must come another way than the stick")}
	}
	o, err := f.options(dirs)
	if err != nil {
		return nil, err
	}
	return o.Open()
}

func inspectCmd(a *app) *cobra.Command {
	var f mediaFlags
	c := &cobra.Command{
		Use:   "inspect MEDIA...",
		Short: "Print what a bundle carries, without reading its payload",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options(args)
			if err != nil {
				return err
			}
			info, err := o.Inspect()
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), info, func(w io.Writer) { info.Print(w) })
		},
	}
	f.add(c)
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
			_, err = exact(cmd.OutOrStdout()).Write(b)
			return err
		},
	}
}
