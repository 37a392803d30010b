package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/spf13/cobra"
)

func keyRootCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "root",
		Short: "Say in a signed chain which keys sign roots and releases, and change that",
		Long: `Say in a signed chain which keys sign roots and releases, and change that.

A host that pins a root follows the chain on the media: each next root must be
signed by as many root keys as the one before it asks for, and by as many of its
own. Keep root keys offline; release keys sign every bundle (clawbox bundle
--root-note 1.note --root-note 2.note --key release.key).`,
	}
	c.AddCommand(rootInitCmd(a), rootChangeCmd(a, "add"), rootChangeCmd(a, "rotate"), rootSignCmd(a), rootShowCmd(a))
	return group(c)
}

// rootFlags are what a new root is made of.
type rootFlags struct {
	out, role, drop  string
	rootKeys, relKey []string
	rootN, relN      int
	signers          []string
	pub              []string
	threshold        int
}

func rootInitCmd(a *app) *cobra.Command {
	var f rootFlags
	c := &cobra.Command{
		Use:   "init NAME --root-key A.pub --release-key R.pub --sign A.key -o 1.note",
		Short: "Begin a chain: version 1, which hosts pin",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := readPub(f.rootKeys)
			if err != nil {
				return err
			}
			rel, err := readPub(f.relKey)
			if err != nil {
				return err
			}
			r := manifest.Root{Format: manifest.RootFormat, Name: args[0], Version: 1, Roles: manifest.RootRoles{
				Root: manifest.Role{Keys: root, Threshold: f.rootN}, Release: manifest.Role{Keys: rel, Threshold: f.relN},
			}}
			return f.write(cmd, a, r)
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.rootKeys, "root-key", nil, "public key that may sign roots (repeatable)")
	fl.IntVar(&f.rootN, "root-threshold", 1, "how many of them must sign a root")
	fl.StringArrayVar(&f.relKey, "release-key", nil, "public key that may sign releases (repeatable)")
	fl.IntVar(&f.relN, "release-threshold", 1, "how many of them must sign a release")
	f.common(c)
	_ = c.MarkFlagRequired("root-key")
	_ = c.MarkFlagRequired("release-key")
	return c
}

func (f *rootFlags) common(c *cobra.Command) {
	c.Flags().StringVarP(&f.out, "output", "o", "", "file to write the root to; it must not exist")
	c.Flags().StringArrayVar(&f.signers, "sign", nil, "private root key to sign with (repeatable; others sign later: clawbox key root sign)")
	_ = c.MarkFlagRequired("output")
	_ = c.MarkFlagRequired("sign")
}

// rootChangeCmd makes the verbs that write the next version.
func rootChangeCmd(a *app, verb string) *cobra.Command {
	var f rootFlags
	short, use := "Write the next root, with more keys in a role", "add OLD.note --role release --pub NEW.pub --sign A.key -o 2.note"
	if verb == "rotate" {
		short, use = "Write the next root, with a key of a role taken out and others in its place", "rotate OLD.note --role release --drop NAME --pub NEW.pub --sign A.key -o 2.note"
	}
	c := &cobra.Command{
		Use: use, Short: short,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			old, err := readRoot(args[0])
			if err != nil {
				return err
			}
			next, err := old.Next()
			if err != nil {
				return err
			}
			if err := f.change(&next, verb == "rotate"); err != nil {
				return err
			}
			return f.write(cmd, a, next)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.role, "role", "", "root or release")
	fl.StringArrayVar(&f.pub, "pub", nil, "public key to put in (repeatable)")
	fl.IntVar(&f.threshold, "threshold", 0, "how many of the role's keys must sign from now on (default: as before)")
	if verb == "rotate" {
		fl.StringVar(&f.drop, "drop", "", "name of the key to take out, as in NAME.pub or NAME+id")
		_ = c.MarkFlagRequired("drop")
	} else {
		_ = c.MarkFlagRequired("pub")
	}
	_ = c.MarkFlagRequired("role")
	f.common(c)
	return c
}

// change edits one role.
func (f *rootFlags) change(r *manifest.Root, drop bool) error {
	role := map[string]*manifest.Role{"root": &r.Roles.Root, "release": &r.Roles.Release}[f.role]
	if role == nil {
		return usageError{fmt.Errorf("--role: got %q, want root or release", f.role)}
	}
	if drop {
		kept := slices.DeleteFunc(slices.Clone(role.Keys), func(k string) bool {
			return strings.HasPrefix(k, f.drop+"+")
		})
		if len(role.Keys)-len(kept) != 1 {
			return usageError{fmt.Errorf("--drop %s: it names %d keys of the role %s, want one: %s", f.drop, len(role.Keys)-len(kept), f.role, strings.Join(role.Keys, ", "))}
		}
		role.Keys = kept
	}
	pub, err := readPub(f.pub)
	if err != nil {
		return err
	}
	role.Keys = append(role.Keys, pub...)
	if f.threshold > 0 {
		role.Threshold = f.threshold
	}
	return nil
}

// write signs and writes a new root.
func (f *rootFlags) write(cmd *cobra.Command, a *app, r manifest.Root) error {
	signers, err := loadSigners(f.signers)
	if err != nil {
		return err
	}
	note, err := manifest.SignRoot(r, signers...)
	if err != nil {
		return usageError{err}
	}
	if _, err := os.Lstat(f.out); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists (%v); a root is never replaced: choose another -o", f.out, err)
	}
	if err := durable.WriteFile(f.out, note, 0o644); err != nil {
		return err
	}
	return showRoot(cmd.OutOrStdout(), a, f.out, note)
}

func rootSignCmd(a *app) *cobra.Command {
	var keys []string
	c := &cobra.Command{
		Use:   "sign FILE.note --key B.key",
		Short: "Add a signature to a root",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			note, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			signers, err := loadSigners(keys)
			if err != nil {
				return err
			}
			if note, err = manifest.Cosign(note, signers...); err != nil {
				return err
			}
			if err := durable.WriteFile(args[0], note, 0o644); err != nil {
				return err
			}
			return showRoot(cmd.OutOrStdout(), a, args[0], note)
		},
	}
	c.Flags().StringArrayVar(&keys, "key", nil, "private root key to sign with (repeatable)")
	_ = c.MarkFlagRequired("key")
	return c
}

func rootShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show PINNED.note [NEXT.note...]",
		Short: "Follow a chain as a host does, and print where it leads",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := manifest.LoadTrust(args[0])
			if err != nil {
				return err
			}
			first, _, ok := t.Root()
			if !ok {
				return usageError{fmt.Errorf("%s holds keys, want a root", args[0])}
			}
			t, err = t.Follow(func(v int64) ([]byte, error) {
				if i := v - first.Version; i < int64(len(args)) {
					return os.ReadFile(args[i])
				}
				return nil, fs.ErrNotExist
			})
			if err != nil {
				return err
			}
			_, note, _ := t.Root()
			return showRoot(cmd.OutOrStdout(), a, args[len(args)-1], note)
		},
	}
}

func showRoot(w io.Writer, a *app, path string, note []byte) error {
	r, sigs, err := manifest.UnverifiedRoot(note)
	if err != nil {
		return err
	}
	v := map[string]any{"file": path, "root": r, "signatures": sigs}
	return a.print(w, v, func(w io.Writer) {
		fmt.Fprintf(w, "%s: root version %d of %s\n", path, r.Version, r.Name)
		for _, s := range sigs {
			fmt.Fprintf(w, "  signed by     %s+%s\n", s.Name, s.Hash)
		}
		fmt.Fprintf(w, "  signs roots    %d of %s\n  signs releases %d of %s\n", r.Roles.Root.Threshold, strings.Join(r.Roles.Root.Keys, ", "),
			r.Roles.Release.Threshold, strings.Join(r.Roles.Release.Keys, ", "))
	})
}

func readRoot(path string) (manifest.Root, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return manifest.Root{}, err
	}
	t, err := manifest.TrustRoot(b)
	if err != nil {
		return manifest.Root{}, fmt.Errorf("%s: %w", path, err)
	}
	r, _, _ := t.Root()
	return r, nil
}

func readPub(paths []string) ([]string, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	t, err := manifest.LoadTrust(paths...)
	return t.Keys(), err
}

func loadSigners(paths []string) (out []manifest.Signer, err error) {
	for _, p := range paths {
		s, err := manifest.LoadSigner(p)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
