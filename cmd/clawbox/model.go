package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/model"
	"github.com/spf13/cobra"
)

func modelCmd(a *app) *cobra.Command {
	var dir string
	c := group(&cobra.Command{Use: "model", Short: "Bring models into a store, list them, verify them, hand them to engines"})
	c.PersistentFlags().StringVar(&dir, "store", "", "the store's directory (default: the installed appliance's)")
	open := func(create bool) (*content.Store, error) { return storeAt(a, dir, create) }
	c.AddCommand(modelImportCmd(a, open), modelListCmd(a, open), modelVerifyCmd(a, open), modelViewCmd(a, open))
	return c
}

// storeAt opens the store in dir, or the installed appliance's.
func storeAt(a *app, dir string, create bool) (*content.Store, error) {
	if dir == "" {
		cfg, err := a.config()
		if err != nil {
			return nil, fmt.Errorf("%w; or name a store with --store", err)
		}
		dir = cfg.Paths.Store
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil && !create {
		return nil, fmt.Errorf("no store in %s: %w", dir, err)
	}
	return content.Open(dir)
}

type openStore func(create bool) (*content.Store, error)

// modelJSON is the JSON twin of a model.
type modelJSON struct {
	model.About
	Digest string      `json:"digest"`
	Size   int64       `json:"size"`
	Facts  model.Facts `json:"facts"`
	Code   []codeJSON  `json:"code"`
	Files  int         `json:"files"`
}

type codeJSON struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

func asJSON(m model.Model) modelJSON {
	v := modelJSON{About: m.About, Digest: m.Manifest.Digest.String(), Size: m.Size(), Facts: m.Facts, Files: len(m.Files), Code: []codeJSON{}}
	for _, f := range m.Files {
		if f.Kind == model.Code {
			v.Code = append(v.Code, codeJSON{f.Name, f.Digest.String()})
		}
	}
	return v
}

func modelImportCmd(a *app, open openStore) *cobra.Command {
	var about model.About
	var o model.Options
	c := &cobra.Command{
		Use:   "import DIR|FILE --name NAME",
		Short: "Bring a model's folder or a GGUF file into the store",
		Long: `Bring a model's folder, as Hugging Face publishes them, or a single GGUF or
safetensors file into the store.

Headers are checked and must account for every byte; shards must be complete.
Pickles run code when they are loaded and are refused. Code in the folder, and
configuration that asks the engine to run it, is hashed and shown, never run:
read it before you serve the model.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := model.Scan(args[0], o)
			if err != nil {
				return err
			}
			defer f.Close()
			s, err := open(true)
			if err != nil {
				return err
			}
			p := newModelProgress(cmd, "import")
			defer p.Close()
			m, err := model.Import(cmd.Context(), s, f, about, p.add(f.Files))
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), asJSON(m), func(w io.Writer) { printModel(w, m) })
		},
	}
	f := c.Flags()
	f.StringVar(&about.Name, "name", "", "the model's name")
	f.StringVar(&about.Version, "model-version", "", "its version (default: latest)")
	f.StringVar(&about.Licence, "licence", "", "its licence, an SPDX expression")
	f.StringVar(&about.Ref, "ref", "", "name in the store (default: NAME:VERSION)")
	f.StringArrayVar(&o.Exclude, "exclude", nil, "pattern of files or folders to leave out (repeatable)")
	f.BoolVar(&o.Pickles, "allow-pickle", false, "take files that run code when they are loaded; engines that load them run that code")
	c.MarkFlagRequired("name")
	return c
}

// printModel says what was found, the dangerous part last, where it is read.
func printModel(w io.Writer, m model.Model) {
	x := m.Facts
	say := func(format string, args ...any) { fmt.Fprintln(w, printable(fmt.Sprintf(format, args...))) }
	say("%s  %s", m.Ref, m.Manifest.Digest)
	say("  %s %s, %s, %d tensors, %d files, %s", x.Format, orDash(x.Architecture), orDash(x.Precision), x.Tensors, len(m.Files), bundle.Size(m.Size()))
	for _, n := range x.Notes {
		say("  note: %s", n)
	}
	for _, f := range m.Files {
		if f.Kind == model.Code || f.Kind == model.Pickle {
			say("  %s: %s  %s", f.Kind, f.Name, f.Digest)
		}
	}
	for _, s := range x.Asks {
		say("  asks the engine to run code: %s", s)
	}
}

// orDash is a field of a table.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// modelProgress shows the files of one run as one task.
type modelProgress struct {
	p    bundle.Reporter
	verb string
	task bundle.Task
}

func newModelProgress(cmd *cobra.Command, verb string) *modelProgress {
	return &modelProgress{p: progress(cmd), verb: verb}
}

func (m *modelProgress) add(files []model.File) model.Progress {
	var total int64
	for _, f := range files {
		total += f.Size
	}
	m.task = m.p.Start(m.verb, total)
	return func(_ string, n int64) { m.task.Add(n) }
}

func (m *modelProgress) Close() {
	if m.task != nil {
		m.task.Done(nil)
	}
	m.p.Close()
}

func modelListCmd(a *app, open openStore) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the models of the store",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := open(false)
			if err != nil {
				return err
			}
			ms, err := model.List(s)
			if err != nil {
				return err
			}
			out := []modelJSON{}
			for _, m := range ms {
				out = append(out, asJSON(m))
			}
			return a.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "REF\tFORMAT\tARCHITECTURE\tPRECISION\tSIZE\tFILES\tCODE\tLICENCE")
				for i, m := range ms {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", orDash(m.Ref), orDash(m.Facts.Format), orDash(m.Facts.Architecture),
						orDash(m.Facts.Precision), bundle.Size(m.Size()), len(m.Files), len(out[i].Code), orDash(m.Licence))
				}
				t.Flush()
			})
		},
	}
}

func modelVerifyCmd(a *app, open openStore) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [REF...]",
		Short: "Read models through and hold them to their digests and headers",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := open(false)
			if err != nil {
				return err
			}
			ms, err := namedModels(s, args)
			if err != nil {
				return err
			}
			out := []modelJSON{}
			var bad []error
			for i, m := range ms {
				x, err := verifyModel(cmd, s, m)
				if err != nil {
					bad = append(bad, fmt.Errorf("%s: %w", m.Ref, err))
					continue
				}
				ms[i].Facts = x
				out = append(out, asJSON(ms[i]))
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if len(bad) > 0 {
				return untrusted{fmt.Errorf("%w\nimport or install what is named again", errors.Join(bad...))}
			}
			return a.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				for _, m := range ms {
					printModel(w, m)
				}
			})
		},
	}
}

func verifyModel(cmd *cobra.Command, s *content.Store, m model.Model) (model.Facts, error) {
	p := newModelProgress(cmd, "verify "+m.Ref)
	defer p.Close()
	return model.Verify(cmd.Context(), s, m, p.add(m.Files))
}

// namedModels are the named ones, or all.
func namedModels(s *content.Store, refs []string) ([]model.Model, error) {
	if len(refs) == 0 {
		return model.List(s)
	}
	var out []model.Model
	for _, r := range refs {
		m, err := model.Open(s, r)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func modelViewCmd(a *app, open openStore) *cobra.Command {
	var consumer, profile string
	var known []string
	for _, c := range model.Consumers {
		known = append(known, c.Name)
	}
	c := &cobra.Command{
		Use:   "view REF DIR --for CONSUMER",
		Short: "Make a folder of a model for an engine, without copying it",
		Long: `Make a folder of a model whose files are hard links to the store's blobs, and
print what the engine wants mounted and set.

The folder must be mounted read-only: the files are the store's own. A NIM cache
is written to, so it is the lower half of an overlay.`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := open(false)
			if err != nil {
				return err
			}
			m, err := model.Open(s, args[0])
			if err != nil {
				return err
			}
			f, err := model.For(consumer, m, profile)
			if err != nil {
				return usageError{err}
			}
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			if err := model.Link(s, m, dir); err != nil {
				return err
			}
			v := map[string]any{"view": dir, "mount": f.Dir, "writable": f.Writable, "uid": f.UID, "env": f.Env, "args": f.Args}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) { printConsumer(w, dir, f) })
		},
	}
	c.Flags().StringVar(&consumer, "for", "", "who reads it: "+strings.Join(known, ", "))
	c.Flags().StringVar(&profile, "profile", "", "NIM's profile that the cache was filled for")
	c.MarkFlagRequired("for")
	return c
}

func printConsumer(w io.Writer, dir string, c model.Consumer) {
	how := "read-only"
	if c.Writable {
		how = fmt.Sprintf("as the lower half of an overlay, upper half owned by uid %d", c.UID)
	}
	fmt.Fprintf(w, "mount  %s on %s, %s\n", dir, c.Dir, how)
	for _, k := range slices.Sorted(maps.Keys(c.Env)) {
		fmt.Fprintf(w, "env    %s=%s\n", k, c.Env[k])
	}
	if len(c.Args) > 0 {
		fmt.Fprintf(w, "args   %s\n", strings.Join(c.Args, " "))
	}
}
