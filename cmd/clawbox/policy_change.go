package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
	"github.com/spf13/cobra"
)

// jsonFlag adds --json, which says the same as --output json.
func jsonFlag(c *cobra.Command, a *app) *cobra.Command {
	c.Flags().BoolFunc("json", "print the result as JSON", func(string) error { a.output = "json"; return nil })
	return c
}

func policyTestCmd(a *app) *cobra.Command {
	var subject string
	c := &cobra.Command{
		Use:   "test FILE...",
		Short: "Ask a policy the questions of a table and compare its answers",
		Long: `Ask a policy the questions of a table and compare its answers.

A FILE names a policy (a file beside it, or a preset) or holds one, and lists cases:

  policy: openclaw.yaml
  cases:
    - {ask: connect evil.example:443, want: deny, because: net.denied}
    - {ask: call api.example.com:443 method=GET path=/items, want: allow, rule: api.example.com}

'because' (a reason code) and 'rule' (part of the rule that decides) are optional. A question
is written as for 'clawbox policy explain'; as a list where a word holds a space. The exit
status is 1 when an answer differs.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []suiteResult
			for _, name := range args {
				r, err := runSuite(name, subject)
				if err != nil {
					return err
				}
				all = append(all, r)
			}
			if err := a.print(cmd.OutOrStdout(), all, func(w io.Writer) { printSuites(w, all) }); err != nil {
				return err
			}
			if n := failures(all); n > 0 {
				return fmt.Errorf("%d cases got another answer than the table wants; correct the policy, or the table", n)
			}
			return nil
		},
	}
	c.Flags().StringVar(&subject, "policy", "", "ask this policy instead of the one that the file names")
	return jsonFlag(c, a)
}

type suiteResult struct {
	File    string            `json:"file"`
	Policy  string            `json:"policy"`
	Digest  string            `json:"digest"`
	Results []policies.Result `json:"results"`
}

func runSuite(name, subject string) (suiteResult, error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return suiteResult{}, err
	}
	s, err := policies.ParseSuite(name, src)
	if err != nil {
		return suiteResult{}, usageError{err}
	}
	p, err := suitePolicy(s, name, subject)
	if err != nil {
		return suiteResult{}, err
	}
	return suiteResult{File: name, Policy: p.Name, Digest: p.Digest(), Results: s.Run(p)}, nil
}

// suitePolicy finds the policy that a suite asks: paths are relative to it.
func suitePolicy(s *policies.Suite, name, subject string) (*policies.Policy, error) {
	switch {
	case subject != "":
		return loadPolicy(subject)
	case s.Inline != nil:
		return s.Inline, nil
	case slices.Contains(policies.Presets(), s.Policy), filepath.IsAbs(s.Policy):
		return loadPolicy(s.Policy)
	}
	return loadPolicy(filepath.Join(filepath.Dir(name), s.Policy))
}

func failures(all []suiteResult) (n int) {
	for _, s := range all {
		for _, r := range s.Results {
			if !r.OK {
				n++
			}
		}
	}
	return n
}

func printSuites(w io.Writer, all []suiteResult) {
	for _, s := range all {
		bad := failures([]suiteResult{s})
		fmt.Fprintf(w, "%s: %d of %d cases as wanted\n", s.File, len(s.Results)-bad, len(s.Results))
		for _, r := range s.Results {
			if r.OK {
				continue
			}
			fmt.Fprintf(w, "%s:%d: %s: got %s (%s), want %s\n", s.File, r.Line, r.Ask, r.Got.Verdict, reasonAndRule(r.Got), wanted(r))
		}
	}
}

func reasonAndRule(d policies.Decision) string {
	if d.Rule == "" {
		return d.Reason
	}
	return d.Reason + ", by " + d.Rule
}

func wanted(r policies.Result) string {
	if r.Because == "" {
		return string(r.Want)
	}
	return string(r.Want) + " (" + r.Because + ")"
}

func policyDiffCmd(a *app) *cobra.Command {
	return jsonFlag(&cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Say in words what changes for an agent from one policy to another",
		Long: `Say in words what changes for an agent from one policy to another.

Each line begins with its kind: wider (the agent may do more, or is watched less), narrower,
other (neither more nor less), same (said in other words).`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			x, err := loadPolicy(args[0])
			if err != nil {
				return err
			}
			y, err := loadPolicy(args[1])
			if err != nil {
				return err
			}
			ds := policies.Diff(x, y)
			if ds == nil {
				ds = []policies.Difference{}
			}
			return a.print(cmd.OutOrStdout(), ds, func(w io.Writer) {
				if len(ds) == 0 {
					fmt.Fprintln(w, "no difference")
				}
				for _, d := range ds {
					fmt.Fprintf(w, "%-9s %s\n", d.Kind, d.Words)
				}
			})
		},
	}, a)
}

func policyImportCmd(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "import FILE [-o OUT]",
		Short: "Turn a policy of any dialect into canonical form and report what changed meaning",
		Long: `Turn a policy of any dialect into canonical form and report what changed meaning.

Reads the canonical form, the dialects network and agent_policy, and OpenShell's version: 1.
The policy goes to standard output, or into the new file OUT; the report to standard error,
or to standard output where OUT is given. Each line of it begins with its kind: wider (the
policy allows what the source did not), narrower, lost (it cannot be said), same (said in
other words).`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			p, cs, err := policies.Import(args[0], src)
			if err != nil {
				return usageError{err}
			}
			if out == "" {
				return a.imported(cmd.OutOrStdout(), cmd.ErrOrStderr(), p, cs)
			}
			if err := savePolicy(out, p); err != nil {
				return err
			}
			return a.imported(nil, cmd.OutOrStdout(), p, cs)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "new file for the policy")
	return jsonFlag(c, a)
}

// imported prints the policy to w, where there is one, and the report.
func (a *app) imported(w, report io.Writer, p *policies.Policy, cs []policies.Change) error {
	if a.output == "json" {
		if w == nil {
			w = report
		}
		return a.print(w, struct {
			Dialect string            `json:"dialect"`
			Digest  string            `json:"digest"`
			Policy  string            `json:"policy"`
			Changes []policies.Change `json:"changes"`
		}{p.Dialect, p.Digest(), string(p.YAML()), append([]policies.Change{}, cs...)}, nil)
	}
	if w != nil {
		if _, err := exact(w).Write(p.YAML()); err != nil {
			return err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s dialect, %d changes\n", p.Source, p.Dialect, len(cs))
	for _, c := range cs {
		fmt.Fprintln(&b, c)
	}
	_, err := io.WriteString(report, b.String())
	return err
}

// savePolicy writes a file that is not there yet.
func savePolicy(path string, p *policies.Policy) error {
	if _, err := os.Lstat(path); err == nil {
		return usageError{fmt.Errorf("%s is there already; name a new file, or move it away", path)}
	}
	return durable.WriteFile(path, p.YAML(), 0o644)
}
