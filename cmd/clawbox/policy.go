package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/policies"
	"github.com/spf13/cobra"
)

func policyCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check, read, question, test, compare and import policies",
		Long: `Check, read, question, test, compare and import policies.

A POLICY is a file, or one of the presets sandbox, development and production.
The language is described in docs/policy.md.`,
	}
	c.AddCommand(policyCheckCmd(a), policyShowCmd(a), policyExplainCmd(a), policyTestCmd(a), policyDiffCmd(a), policyImportCmd(a))
	return group(c)
}

// loadPolicy reads a file, or a preset when no such file is there.
func loadPolicy(name string) (*policies.Policy, error) {
	src, err := os.ReadFile(name)
	switch {
	case err == nil:
		p, err := policies.Parse(name, src)
		if err != nil {
			return nil, usageError{err}
		}
		return p, nil
	case errors.Is(err, os.ErrNotExist) && slices.Contains(policies.Presets(), name):
		return policies.Preset(name)
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w; want a policy file or one of %s", err, strings.Join(policies.Presets(), ", "))
	}
	return nil, err
}

func policyCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check POLICY...",
		Short: "Parse policies strictly; every mistake is named with its place",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			type verdict struct {
				Policy  string `json:"policy"`
				Dialect string `json:"dialect,omitempty"`
				Digest  string `json:"digest,omitempty"`
				Error   string `json:"error,omitempty"`
			}
			var vs []verdict
			var errs []error
			for _, name := range args {
				p, err := loadPolicy(name)
				if err != nil {
					vs, errs = append(vs, verdict{Policy: name, Error: err.Error()}), append(errs, err)
					continue
				}
				vs = append(vs, verdict{Policy: name, Dialect: p.Dialect, Digest: p.Digest()})
			}
			err := a.print(cmd.OutOrStdout(), vs, func(w io.Writer) {
				for _, v := range vs {
					if v.Error == "" {
						fmt.Fprintf(w, "%s: ok (%s dialect, %s)\n", v.Policy, v.Dialect, short(v.Digest))
					}
				}
			})
			return errors.Join(append(errs, err)...)
		},
	}
}

func policyShowCmd(a *app) *cobra.Command {
	var words bool
	c := &cobra.Command{
		Use:   "show POLICY",
		Short: "Print a policy in canonical form, with every value that it left out",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := loadPolicy(args[0])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				if words {
					fmt.Fprint(w, p.Describe())
					return
				}
				w.Write(p.YAML())
			})
		},
	}
	c.Flags().BoolVar(&words, "words", false, "describe it in sentences instead")
	return c
}

func policyExplainCmd(a *app) *cobra.Command {
	var sensitive bool
	c := &cobra.Command{
		Use:   "explain POLICY ACTION OBJECT [KEY=VALUE...]",
		Short: "Say what a policy decides, and by which rule",
		Long: `Say what a policy decides, and by which rule.

  read|write PATH
  exec PATH        digest=sha256:HEX
  connect HOST:PORT  binary=PATH ancestors=PATH,... addr=IP
  call HOST:PORT     the same, and of the message: protocol= method= path= operation= name=
                     fields=A,B rpc= tool= args=JSON frame=
  infer MODEL        sensitive=true

What is not said about a message is what clients of its protocol usually send.`,
		Example: `  clawbox policy explain openclaw.yaml read /etc/shadow
  clawbox policy explain openclaw.yaml exec /usr/bin/curl
  clawbox policy explain production connect api.example.com:443 binary=/usr/bin/git
  clawbox policy explain openclaw.yaml call api.example.com:443 method=DELETE path=/repos/a
  clawbox policy explain openclaw.yaml call mcp.example.com:443 protocol=mcp tool=search 'args={"q":"x"}'
  clawbox policy explain production infer gpt-5 --sensitive`,
		Args: usageArgs(cobra.MinimumNArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := loadPolicy(args[0])
			if err != nil {
				return err
			}
			r, err := policies.ParseRequest(args[1:])
			if err != nil {
				return usageError{err}
			}
			r.Sensitive = r.Sensitive || sensitive
			return a.print(cmd.OutOrStdout(), p.Decide(r), func(w io.Writer) { fmt.Fprintln(w, strings.TrimRight(p.Explain(r), "\n")) })
		},
	}
	c.Flags().BoolVar(&sensitive, "sensitive", false, "infer: the content looks sensitive")
	return c
}
