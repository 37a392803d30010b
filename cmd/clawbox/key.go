package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/spf13/cobra"
)

func keyCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Make the keys that sign bundles"}
	c.AddCommand(keyGenerateCmd(a), keyRootCmd(a))
	return group(c)
}

func keyGenerateCmd(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "generate NAME",
		Short: "Make an Ed25519 key pair: NAME.key signs, NAME.pub is what hosts trust",
		Long: `Make an Ed25519 key pair in the form of C2SP signed notes.

NAME.key is secret and stays with whoever releases bundles. NAME.pub goes to
the hosts by another way than the stick. Existing files are never replaced.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = args[0]
			}
			skey, vkey, err := manifest.GenerateKey(args[0])
			if err != nil {
				return usageError{err}
			}
			if err := writeNew(out+".key", skey+"\n", 0o600); err != nil {
				return err
			}
			if err := writeNew(out+".pub", vkey+"\n", 0o644); err != nil {
				return errors.Join(err, os.Remove(out+".key"))
			}
			v := map[string]string{"key": out + ".key", "public": out + ".pub", "vkey": vkey}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "%s.key  secret; keep it off the stick\n%s.pub  %s\n", out, out, vkey)
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "path of the two files, without .key and .pub (default: NAME)")
	return c
}

// writeNew writes a file that must not exist.
func writeNew(path, text string, mode os.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s exists; a key is never replaced: choose another --out, or move it away", path)
	}
	return durable.WriteFile(path, []byte(text), mode)
}
