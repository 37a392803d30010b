package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func approveCmd(a *app) *cobra.Command {
	r := answerFlags{}
	c := &cobra.Command{
		Use:   "approve [ID]",
		Short: "Answer what agents wait for",
		Long: `Answer what agents wait for.

On a terminal, without ID, this is a screen that follows what is held: who asks,
which program, why, and the exact policy change that an approval for ever makes.
Elsewhere, or with --json, it prints a list.

With ID it answers one request. --scope once lets in the connections that wait
now, session all until the agent's sandbox stops, always changes the agent's
policy. deny refuses it for a minute, deny-session until the sandbox stops. The
answer is on the ledger before it takes effect, and nothing is restarted.

An ID works once, for what was shown under it. A script that decides by the
list's contents sends the digest that it saw with --digest; for always it is
asked for, since that changes a policy.`,
		Example: `  clawbox approve
  clawbox approve list --json
  clawbox approve x7mqd2kfw3nbt5ha --scope session
  clawbox approve x7mqd2kfw3nbt5ha --scope deny --reason "use the mirror"
  clawbox approve list --standing
  clawbox approve revoke p4z6hs2qvt7cfkam`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			r.operator = operator(r.operator)
			switch {
			case len(args) == 1:
				return r.answer(cmd, a, cl, args[0])
			case a.output == "text" && onScreen(cmd):
				return approveScreen(cmd.Context(), watched{cl}, r.operator)
			}
			return listPending(cmd, a, cl)
		}),
	}
	r.add(c)
	json := c.PersistentFlags().Bool("json", false, "print JSON (as -o json)")
	c.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if *json {
			a.output = "json"
		}
		return a.begin(cmd)
	}
	c.AddCommand(approveListCmd(a), approveRevokeCmd(a))
	return c
}

// answerFlags are the words of an answer.
type answerFlags struct {
	scope, operator, reason, digest string
	deny                            bool
}

func (r *answerFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.scope, "scope", "", "once (default), session, always, deny or deny-session")
	f.Bool("once", false, "as --scope once")
	f.Bool("session", false, "as --scope session")
	f.Bool("always", false, "as --scope always")
	f.BoolVar(&r.deny, "deny", false, "as --scope deny; with --session: until the sandbox stops")
	f.StringVar(&r.reason, "reason", "", "why; the client sees it, and so does the ledger")
	f.StringVar(&r.digest, "digest", "", "digest of the request that was seen; another one is refused")
	f.StringVar(&r.operator, "operator", "", "who answers, for the ledger (default: the user name)")
	c.MarkFlagsMutuallyExclusive("scope", "once", "session", "always")
	c.MarkFlagsMutuallyExclusive("scope", "deny")
	c.MarkFlagsMutuallyExclusive("always", "deny")
}

// scopes are the words of --scope, as what the appliance takes.
var scopes = map[string]control.AnswerRequest{
	"once":         {Allow: true, Scope: "once"},
	"session":      {Allow: true, Scope: "session"},
	"always":       {Allow: true, Scope: "always"},
	"deny":         {Scope: "once"},
	"deny-session": {Scope: "session"},
}

// request reads the flags.
func (r *answerFlags) request(cmd *cobra.Command) (control.AnswerRequest, error) {
	word := r.scope
	for _, s := range []string{"once", "session", "always"} {
		if on, _ := cmd.Flags().GetBool(s); on {
			word = s
		}
	}
	switch {
	case r.deny && word == "session":
		word = "deny-session"
	case r.deny:
		word = "deny"
	case word == "":
		word = "once"
	}
	q, ok := scopes[word]
	if !ok {
		return q, usageError{fmt.Errorf("--scope: got %q, want once, session, always, deny or deny-session", word)}
	}
	q.Operator, q.Reason, q.Digest = r.operator, r.reason, r.digest
	return q, nil
}

// answer answers the request id.
func (r *answerFlags) answer(cmd *cobra.Command, a *app, cl *control.Client, id string) error {
	q, err := r.request(cmd)
	if err != nil {
		return err
	}
	p, err := find(cmd.Context(), cl, id)
	if err != nil {
		return err
	}
	if q.Digest == "" && q.Scope == "always" && p.ID != "" {
		// The list that the operator read may be another than this one.
		return usageError{fmt.Errorf("--scope always changes a policy: %s; if that is what you want, add --digest %s", printable(p.Words), p.Digest)}
	}
	if q.Digest == "" {
		q.Digest = p.Digest // a request never changes under its id
	}
	if err := cl.Answer(cmd.Context(), id, q); err != nil {
		return err
	}
	type answered struct {
		control.AnswerRequest
		Request control.Pending `json:"request"`
	}
	return a.print(cmd.OutOrStdout(), answered{q, p}, func(w io.Writer) { fmt.Fprintln(w, done(p, q)) })
}

// find looks for a held request. One that is not there is asked for all the
// same, so that the refusal is the appliance's.
func find(ctx context.Context, cl *control.Client, id string) (control.Pending, error) {
	ps, err := cl.Approvals(ctx)
	for _, p := range ps {
		if p.ID == id {
			return p, errors.Join(err, genuine(p))
		}
	}
	return control.Pending{}, err
}

// genuine refuses requests that are not what their digests say: they come from
// the process that talks to the agents, which an agent may have taken over.
func genuine(ps ...control.Pending) error {
	for _, p := range ps {
		if err := holds.Check(p); err != nil {
			return fmt.Errorf("the way out shows something else than it asks for: %s; answer nothing, restart 'clawbox serve' and read 'clawbox audit replay'", printable(err.Error()))
		}
	}
	return nil
}

// watched are the requests that the screen may show.
type watched struct{ *control.Client }

// Watch refuses what is not genuine.
func (w watched) Watch(ctx context.Context, version string) (control.Held, error) {
	h, err := w.Client.Watch(ctx, version)
	return h, errors.Join(err, genuine(h.Pending...))
}

// done says what an answer did.
func done(p control.Pending, q control.AnswerRequest) string {
	what := printable(p.Agent) + ": " + destination(p)
	switch {
	case !q.Allow && q.Scope == "session":
		return what + " is denied until its sandbox stops"
	case !q.Allow:
		return what + " is denied"
	case q.Scope == "always":
		return what + " is allowed from now on; the policy says so"
	case q.Scope == "session":
		return what + " is allowed until its sandbox stops"
	}
	return what + " is allowed this once"
}

// destination is what is asked for.
func destination(p control.Pending) string {
	d := fmt.Sprintf("%s:%d", printable(p.Host), p.Port)
	if strings.Contains(p.Host, ":") {
		d = fmt.Sprintf("[%s]:%d", printable(p.Host), p.Port)
	}
	if p.Call != "" {
		d = printable(p.Call) + " on " + d
	}
	return d
}

// program is who asks: the path that the guard saw, else the process's own word.
func program(p control.Pending) string {
	if p.Binary != "" {
		return printable(p.Binary)
	}
	if p.Process != "" {
		return printable(p.Process)
	}
	return "not known"
}

// operator names the person for the ledger.
func operator(given string) string {
	if given != "" {
		return given
	}
	if by := os.Getenv("SUDO_USER"); by != "" {
		return by
	}
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}

// onScreen says whether there is somebody at a terminal that can be drawn on.
func onScreen(cmd *cobra.Command) bool {
	out, ok := unescaped(cmd.OutOrStdout()).(*os.File)
	capable := os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != "" && os.Getenv("ACCESSIBLE") == ""
	return ok && capable && term.IsTerminal(int(out.Fd())) && term.IsTerminal(int(os.Stdin.Fd()))
}

func approveListCmd(a *app) *cobra.Command {
	var standing bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Print what is held, or the answers that stand",
		Args:  usageArgs(cobra.NoArgs),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, _ []string) error {
			if standing {
				return listStanding(cmd, a, cl)
			}
			return listPending(cmd, a, cl)
		}),
	}
	c.Flags().BoolVar(&standing, "standing", false, "the answers that stand; 'clawbox approve revoke' takes one back")
	return c
}

func approveRevokeCmd(a *app) *cobra.Command {
	var by string
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Take back an answer that stands, and close what it let in",
		Long: `Take back an answer that stands, and close the connections that it let in.

'clawbox approve list --standing' shows the IDs. What was allowed always as a
change of a policy is in that policy: 'clawbox agent reload' replaces it.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			s, err := cl.Revoke(cmd.Context(), args[0], operator(by))
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				fmt.Fprintf(w, "%s: the answer for %s:%d does not stand any more\n", printable(s.Agent), printable(s.Host), s.Port)
			})
		}),
	}
	c.Flags().StringVar(&by, "operator", "", "who revokes, for the ledger (default: the user name)")
	return c
}

func listPending(cmd *cobra.Command, a *app, cl *control.Client) error {
	ps, err := cl.Approvals(cmd.Context())
	if err := errors.Join(err, genuine(ps...)); err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), ps, func(w io.Writer) {
		if len(ps) == 0 {
			fmt.Fprintln(w, "nothing is held")
			return
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "ID\tAGENT\tDESTINATION\tPROGRAM\tWAITING\tFOR\tALWAYS ADDS")
		for _, p := range ps {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", printable(p.ID), printable(p.Agent), destination(p), program(p),
				p.Waiting, time.Since(p.Since).Round(time.Second), printable(p.Change))
		}
	})
}

func listStanding(cmd *cobra.Command, a *app, cl *control.Client) error {
	ss, err := cl.Standing(cmd.Context())
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), ss, func(w io.Writer) {
		if len(ss) == 0 {
			fmt.Fprintln(w, "no answer stands; what was allowed always is in the agents' policies")
			return
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "ID\tAGENT\tANSWER\tDESTINATION\tPROGRAM\tBY\tSINCE")
		for _, s := range ss {
			p := control.Pending{Host: s.Host, Port: s.Port, Call: s.Call, Binary: s.Binary}
			word := map[bool]string{true: "allowed ", false: "denied "}[s.Allow] + s.Scope
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(s.ID), printable(s.Agent), word, destination(p), program(p),
				printable(s.Operator), s.Time.UTC().Format(time.RFC3339))
		}
	})
}
