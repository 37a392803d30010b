package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
)

// logFlags says which ledger is meant; the installed one unless told.
type logFlags struct {
	a   *app
	dir string
	key string
}

func auditCmd(a *app) *cobra.Command {
	l := &logFlags{a: a}
	c := &cobra.Command{
		Use:   "audit",
		Short: "Prove, read and export the record",
		Long: `Prove, read and export the record.

The ledger is read from its files, so that it can be audited on another
machine: --dir names a copy of its directory and --key its public key.`,
	}
	f := c.PersistentFlags()
	f.StringVar(&l.dir, "dir", "", "the ledger's directory (default: the installed appliance's)")
	f.StringVar(&l.key, "key", "", "file with the ledger's public key (default: the installed appliance's)")
	c.AddCommand(auditVerifyCmd(l), auditReplayCmd(l), auditExportCmd(l), auditAnchorCmd(l), auditProveCmd(l), auditCheckCmd(l))
	return group(c)
}

// path is the ledger's directory.
func (l *logFlags) path() (string, error) {
	if l.dir != "" {
		return l.dir, nil
	}
	c, err := l.a.config()
	return c.Paths.Ledger, err
}

// open is the ledger's directory and public key.
func (l *logFlags) open() (string, note.Verifier, error) {
	dir, err := l.path()
	if err != nil {
		return "", nil, err
	}
	v, err := l.verifier()
	return dir, v, err
}

// verifier reads the ledger's public key.
func (l *logFlags) verifier() (note.Verifier, error) {
	path := l.key
	if path == "" {
		path = filepath.Join(filepath.Dir(configFile(l.a.root)), "ledger.vkey")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the ledger's public key: %w; name it with --key", err)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("the ledger's public key %s: %w; want one line NAME+HASH+KEY", path, err)
	}
	return v, nil
}

func auditVerifyCmd(l *logFlags) *cobra.Command {
	var anchors []string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Recompute the whole ledger and hold it to its signatures",
		Long: `Recompute the whole ledger from the bytes of its entries and hold it to its
signed checkpoints. Any changed byte, dropped entry or cut tail is an error that
names the file and the entry (exit status 3).

Whoever holds the ledger's key, or puts back an older copy of the whole
directory, is found out by a checkpoint that was kept elsewhere: --anchor.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, v, err := l.open()
			if err != nil {
				return err
			}
			var o ledger.Options
			for _, path := range anchors {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				o.Anchors = append(o.Anchors, b)
			}
			r, err := ledger.Verify(dir, v, o)
			if err != nil {
				return err
			}
			return l.a.print(cmd.OutOrStdout(), r, func(w io.Writer) { printReport(w, r) })
		},
	}
	c.Flags().StringArrayVar(&anchors, "anchor", nil, "checkpoint kept elsewhere that the ledger must extend (repeatable)")
	return c
}

func printReport(w io.Writer, r ledger.Report) {
	fmt.Fprintf(w, "the ledger holds: %d entries, root %s\n", r.Size, r.Root)
	fmt.Fprintf(w, "checked: %d bundles, %d tiles, %d commits, %d anchors\n", r.Bundles, r.Tiles, r.Commits, r.Anchors)
	if r.Unpublished > 0 && !r.Live {
		fmt.Fprintf(w, "%d entries are signed and not yet in the checkpoint file: the log was copied, or its service killed, while it ran\n", r.Unpublished)
	}
	if r.Live {
		fmt.Fprintln(w, "the appliance is running: entries that came during the check are not included")
	}
	if r.Anchors == 0 {
		fmt.Fprintln(w, "no anchor was given: an older copy of the whole ledger would also hold ('clawbox audit anchor')")
	}
}

// selection is the filter flags of replay and export.
type selection struct {
	from         int64
	agent, kind  string
	verdict      string
	since, until string
}

func (s *selection) flags(c *cobra.Command) {
	f := c.Flags()
	f.Int64Var(&s.from, "from", 0, "first entry")
	f.StringVar(&s.agent, "agent", "", "only this agent")
	f.StringVar(&s.kind, "kind", "", "only this kind: "+strings.Join(kinds, ", "))
	f.StringVar(&s.verdict, "verdict", "", "only this verdict: "+strings.Join(verdicts, ", "))
	f.StringVar(&s.since, "since", "", "not before: a time in RFC 3339, or how long ago (15m)")
	f.StringVar(&s.until, "until", "", "before: the same")
}

// kinds and verdicts are what --kind and --verdict take; an unknown word would
// select nothing, which reads like "nothing happened".
var (
	kinds = []string{
		"exec", "file", "kernel", "connect", "dns", "model", "approval", "lifecycle", "policy", "install", "weakening", "service",
	}
	verdicts = []string{"allowed", "denied", "held"}
)

func (s *selection) check() error {
	if s.kind != "" && !slices.Contains(kinds, s.kind) {
		return fmt.Errorf("--kind: got %q, want one of %s", s.kind, strings.Join(kinds, ", "))
	}
	if s.verdict != "" && !slices.Contains(verdicts, s.verdict) {
		return fmt.Errorf("--verdict: got %q, want one of %s", s.verdict, strings.Join(verdicts, ", "))
	}
	return nil
}

// entries opens the selected part of the ledger.
func (l *logFlags) entries(s selection) (iter.Seq2[ledger.Entry, error], error) {
	dir, err := l.path()
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, usageError{err}
	}
	f := ledger.Filter{Agent: s.agent, Kind: ledger.Kind(s.kind), Verdict: ledger.Verdict(s.verdict)}
	if f.Since, err = moment(s.since); err != nil {
		return nil, usageError{fmt.Errorf("--since: %w", err)}
	}
	if f.Until, err = moment(s.until); err != nil {
		return nil, usageError{fmt.Errorf("--until: %w", err)}
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	return f.Select(ledger.Read(dir, s.from)), nil
}

// moment reads a time, or a duration before now.
func moment(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("got %q, want 2026-01-31T12:00:00Z or 15m", s)
	}
	return t, nil
}

func auditReplayCmd(l *logFlags) *cobra.Command {
	var s selection
	c := &cobra.Command{
		Use:   "replay",
		Short: "Tell what happened, one line an entry",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			seq, err := l.entries(s)
			if err != nil {
				return err
			}
			if l.a.output == "json" {
				return ledger.Export(exact(cmd.OutOrStdout()), seq)
			}
			return ledger.Replay(cmd.OutOrStdout(), seq)
		},
	}
	s.flags(c)
	return c
}

func auditExportCmd(l *logFlags) *cobra.Command {
	var s selection
	var tiles string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write OCSF events as JSON lines, or a tlog-tiles tree for public tools",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tiles != "" {
				dir, err := l.path()
				if err != nil {
					return err
				}
				return ledger.ExportTiles(dir, tiles)
			}
			seq, err := l.entries(s)
			if err != nil {
				return err
			}
			return ledger.Export(exact(cmd.OutOrStdout()), seq)
		},
	}
	s.flags(c)
	c.Flags().StringVar(&tiles, "tiles", "", "write the whole ledger into this new directory as C2SP tlog-tiles instead")
	return c
}

func auditAnchorCmd(l *logFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "anchor",
		Short: "Verify, then print the checkpoint to keep elsewhere",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, v, err := l.open()
			if err != nil {
				return err
			}
			r, err := ledger.Verify(dir, v, ledger.Options{})
			if err != nil {
				return err
			}
			_, err = io.WriteString(exact(cmd.OutOrStdout()), r.Checkpoint)
			return err
		},
	}
}

func auditProveCmd(l *logFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "prove INDEX",
		Short: "Print a proof that one entry is in the ledger, for somebody without the ledger",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("got index %q, want a number", args[0])}
			}
			dir, err := l.path()
			if err != nil {
				return err
			}
			p, err := ledger.Prove(dir, n)
			if err != nil {
				return err
			}
			e := json.NewEncoder(exact(cmd.OutOrStdout()))
			e.SetIndent("", "  ")
			return e.Encode(p)
		},
	}
}

func auditCheckCmd(l *logFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "check PROOF.json",
		Short: "Check a proof that 'prove' printed, with the public key alone",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			var p ledger.Proof
			if err := json.Unmarshal(b, &p); err != nil {
				return usageError{fmt.Errorf("%s: %w; want what 'clawbox audit prove' printed", args[0], err)}
			}
			v, err := l.verifier()
			if err != nil {
				return err
			}
			r, err := ledger.CheckProof(p, v)
			if err != nil {
				return untrusted{err}
			}
			e := ledger.Entry{Index: p.Index, Event: p.Event, Record: r}
			return ledger.Replay(cmd.OutOrStdout(), func(yield func(ledger.Entry, error) bool) { yield(e, nil) })
		},
	}
}
