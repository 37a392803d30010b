package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/installer/backup"
	"github.com/spf13/cobra"
)

func backupCmd(a *app) *cobra.Command {
	var recipients []string
	c := &cobra.Command{
		Use:   "backup FILE|DIR",
		Short: "Copy the appliance's state into one file",
		Long: `Copy the appliance's state into one file: configuration, policies, the ledger,
receipts, standing answers, agents' records and snapshots, and on a cluster's
server K3s's datastore. It may run meanwhile, and so may K3s; the copy of the ledger
is verified. Below a DIR the file is named after the host and the time.

The ledger's key signs it. Write the public half down that is printed: a new machine,
which does not know it, takes the backup only from who can name it.

Private keys and credentials, K3s's among them, are only in a backup that is
encrypted (--recipient), and without them it serves this host alone. What agents have
written is in it as far as there are snapshots ('clawbox agent snapshot'). Their
environments are in it, so keep it as you keep the host.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var o backup.Options
			var err error
			if o.Recipients, err = bundle.ParseRecipients(recipients...); err != nil {
				return usageError{err}
			}
			path := backupPath(args[0], len(recipients) > 0)
			var about backup.About
			if err := whole(path, func(w io.Writer) (err error) {
				about, err = backup.Write(cmd.Context(), w, a.root, o)
				return err
			}); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), about, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %d files, a ledger of %d entries, release %s\nsigned by %s\n", path, len(about.Files), about.Entries, about.Version, about.Key)
				if !about.Keys {
					fmt.Fprintln(w, "no private key is in it: it serves this host only; with --recipient another machine can take over")
				}
			})
		},
	}
	c.Flags().StringArrayVar(&recipients, "recipient", nil, "age1…, an ssh public key, or a file with them: encrypt to it, and take the keys along (repeatable)")
	return c
}

// backupPath names the file in a folder.
func backupPath(arg string, sealed bool) string {
	st, err := os.Stat(arg)
	if err != nil || !st.IsDir() {
		return arg
	}
	host, _ := os.Hostname() // a name for people
	name := fmt.Sprintf("clawbox-%s-%s.backup", host, time.Now().UTC().Format("20060102T150405Z"))
	if sealed {
		name += ".age"
	}
	return filepath.Join(arg, name)
}

func restoreCmd(a *app) *cobra.Command {
	var identities []string
	var key string
	var o backup.RestoreOptions
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put the appliance's state back from a backup",
		Long: `Put the appliance's state back from a backup. The release that was backed up has to
be installed, and must not run.

Everything is verified before anything is replaced, and what is replaced is moved
aside. The backup has to be signed by the key of this host's ledger, or by the one
that --ledger-key names. A ledger is never put back to an earlier state: a backup
whose ledger is shorter than the one in place, or another one, is refused. On a
fresh machine --replace takes the backup's in place of the one that it has begun, and --ledger-key
says whose backup is meant: whoever made it chooses what the machine trusts.

On a cluster K3s must not run either. With --cluster K3s's state alone is put back:
the ledger stays as it is, and may have gone on since.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Identities, err = bundle.LoadIdentities(identities...); err != nil {
				return usageError{err}
			}
			if key != "" {
				if o.Key, err = backup.LoadKey(key); err != nil {
					return usageError{err}
				}
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("restore needs root, got uid %d", os.Geteuid())
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			about, aside, err := backup.Restore(cmd.Context(), f, a.root, o)
			if err != nil {
				return err
			}
			v := map[string]any{"backup": about, "aside": aside, "checked": o.Check}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "%s of %s holds: release %s, a ledger of %d entries\n", args[0], about.Created.Format(time.RFC3339), about.Version, about.Entries)
				if o.Check {
					return
				}
				if len(aside) > 0 {
					fmt.Fprintf(w, "restored; moved aside: %s\n", strings.Join(aside, ", "))
				}
				fmt.Fprintln(w, "start the appliance; agents' files come back with 'clawbox agent restore NAME SNAP'")
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&identities, "identity", nil, "file with an age or ssh identity that the backup is encrypted to (repeatable)")
	f.StringVar(&key, "ledger-key", "", "public key of the ledger that has to have signed the backup, or the file with it (default: this host's)")
	f.StringVar(&o.Operator, "operator", "root", "who answers for it; goes on the ledger")
	f.BoolVar(&o.Replace, "replace", false, "move a ledger aside that another key has begun")
	f.BoolVar(&o.Cluster, "cluster", false, "put back K3s's datastore, certificates and token, and nothing else")
	f.BoolVar(&o.Check, "check", false, "verify the backup against this installation, and change nothing")
	return c
}
