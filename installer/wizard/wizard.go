// Package wizard asks an operator what an answers file would say.
//
//	a, err := wizard.Ask(ctx, facts, release, os.Stdin, os.Stdout)
//	if errors.Is(err, wizard.ErrDeclined) { … }  // nothing was touched
//
// With the profile cluster it also asks for role, name and address of the node,
// tenants, and the models to serve, which it holds against the memory of the
// GPUs before it goes on.
//
// It asks only what cannot be known: defaults come from the release and from
// the machine, and pages that a machine does not need do not appear (ports
// only where one is taken, weakenings only where preflight demands one). A
// machine that is refused for good ends the wizard with the reasons before any
// question that would be in vain. The last page is the plan with its forecast
// and the question whether to go on; its default answer is no.
//
// On a terminal the pages are forms. Where TERM is dumb, ACCESSIBLE is set, or
// input is no terminal, the same questions come as plain lines without
// colours or cursor movement, for screen readers, serial consoles and scripts.
// Input that ends before the last answer ends the wizard with an error: an
// answer is never made up.
package wizard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"

	"charm.land/huh/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/term"
)

var (
	// ErrDeclined says that the operator said no, or stopped the wizard.
	ErrDeclined = errors.New("the installation was declined; nothing was changed")
	// ErrNoInput says that the input ended before the last question.
	ErrNoInput = errors.New("got the end of input; wanted an answer to every question; run it on a terminal, or use an answers file")
)

// asker holds one conversation.
type asker struct {
	ctx   context.Context
	facts host.Facts
	rel   installer.Release
	a     installer.Answers
	in    io.Reader
	out   io.Writer
	lines *lineReader // plain mode only
	keys  *keyboard   // terminal mode only
	paths func(root string) host.Facts
}

// Ask puts the questions and returns the answers, which Preflight and NewPlan
// have accepted for facts. Where the operator chooses another root than
// facts.Root, the machine is gathered again for that root.
func Ask(ctx context.Context, f host.Facts, r installer.Release, in io.Reader, out io.Writer) (installer.Answers, error) {
	q := &asker{ctx: ctx, facts: f, rel: r, a: installer.DefaultAnswers(r), in: in, out: out, paths: host.Gather}
	if plain(in) {
		q.lines = &lineReader{r: in}
		q.in = q.lines
		// The form library colours plain prompts too; this takes it out again.
		q.out = &colorprofile.Writer{Forward: out, Profile: colorprofile.NoTTY}
	} else {
		k, err := openKeyboard(in.(*os.File))
		if err != nil {
			return installer.Answers{}, err
		}
		defer k.Close()
		q.keys = k
	}
	q.suggest()
	for _, page := range []func() error{q.hopeless, q.basics, q.role, q.node, q.tenants, q.serving, q.telemetry, q.agents, q.policies, q.hosts, q.ports, q.weakenings, q.confirm} {
		if err := page(); err != nil {
			return installer.Answers{}, err
		}
	}
	return q.a, nil
}

// plain says whether to ask in plain lines.
func plain(in io.Reader) bool {
	f, isFile := in.(*os.File)
	return os.Getenv("ACCESSIBLE") != "" || os.Getenv("TERM") == "dumb" || !isFile || !term.IsTerminal(int(f.Fd()))
}

// suggest fits the defaults to the machine.
func (q *asker) suggest() {
	if q.facts.Root != "" {
		q.a.Root = q.facts.Root
	}
	q.a.Operator = os.Getenv("SUDO_USER")
	// "root" is an account, not a person who answers for something.
	if u, err := user.Current(); err == nil && q.a.Operator == "" && u.Uid != "0" {
		q.a.Operator = u.Username
	}
	if q.a.Root != "/" || !q.facts.Systemd {
		q.a.Start = "none"
	}
}

// form runs one page. The plain mode of the library neither hides groups nor
// reports the end of input, so a page is a form of its own and the reader
// keeps watch.
func (q *asker) form(title string, fields ...huh.Field) error {
	f := huh.NewForm(huh.NewGroup(fields...).Title(title)).WithOutput(q.out)
	if q.lines != nil {
		fmt.Fprintf(q.out, "\n== %s ==\n", title)
		f = f.WithInput(q.in).WithAccessible(true)
	} else {
		page := q.keys.page()
		defer page.Close()
		f = f.WithInput(page)
	}
	err := f.RunWithContext(q.ctx)
	switch {
	case errors.Is(err, huh.ErrUserAborted), q.ctx.Err() != nil:
		return ErrDeclined
	case err != nil:
		return fmt.Errorf("wizard: %w", err)
	case q.lines != nil && q.lines.ended():
		return ErrNoInput
	}
	return nil
}

// say writes a paragraph between pages.
func (q *asker) say(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if q.keys != nil {
		s = ansi.Wordwrap(s, q.width(), "")
	}
	fmt.Fprintln(q.out, s)
}

// width is the terminal's, in columns.
func (q *asker) width() int {
	if f, ok := q.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
			return w
		}
	}
	return 80
}

// hopeless ends at once on a machine that no answer can make acceptable.
func (q *asker) hopeless() error {
	q.say("%s, sequence %d, signed by %s", q.rel, q.rel.Sequence, strings.Join(q.rel.Signers, ", "))
	q.say("for this machine: %s, %s, kernel %s", q.facts.Hostname, q.facts.OS.Pretty, q.facts.Kernel.Release)
	return q.unfit()
}

// unfit returns the refusals that no answer can help.
func (q *asker) unfit() error {
	var bad []installer.Finding
	for _, f := range q.refused() {
		if f.Weakening == "" && !slices.Contains(answerable, f.Check) {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		return &installer.ErrPreflight{Findings: bad}
	}
	return nil
}

// answerable are the checks that other answers can satisfy.
var answerable = []string{
	"answers", "ports", "uid-range", "socket-path", "agents", "agent-policies", "systemd",
	"disk-space", "disk-inodes", "disk-writable", "disk-exec", "disk-type", // another root may be on another disk
	"node-name", "node-address", "serving", "chart-images", "gpu-memory", "gpu-driver", "gpu-toolkit", "gpu-fabric", "gpu-mig",
}

func (q *asker) refused() []installer.Finding {
	a := q.a
	if a.Operator == "" {
		a.Operator = "?"
	}
	return installer.Refused(installer.Preflight(q.facts, a, q.rel))
}

func (q *asker) basics() error {
	start := []huh.Option[string]{
		huh.NewOption("as a systemd service, at every boot", "systemd"),
		huh.NewOption("by hand (clawbox serve)", "none"),
	}
	err := q.form("This appliance",
		huh.NewSelect[string]().Title("Profile").Options(
			huh.NewOption("solo: this host alone, without Kubernetes", "solo"),
			huh.NewOption("cluster: K3s on this host, and on those that join", "cluster"),
		).Validate(q.validProfile).Value(&q.a.Profile),
		huh.NewInput().Title("Install below (/ on an ordinary host)").Validate(orDefault(q.a.Root, validRoot)).Value(&q.a.Root),
		huh.NewInput().Title("Your name, for the receipt in the audit log").Validate(orDefault(q.a.Operator, installer.ValidOperator)).Value(&q.a.Operator),
		huh.NewSelect[string]().Title("Start the appliance").Options(start...).Value(&q.a.Start),
	)
	if err == nil && q.a.Root != q.facts.Root {
		speed := q.facts.MediaRead
		q.facts = q.paths(q.a.Root)
		q.facts.MediaRead = speed
	}
	return err
}

func validRoot(s string) error {
	if s == "/" {
		return nil
	}
	return config.AbsPath("root", s)
}

// orDefault lets an empty line stand for the default: in plain mode the
// library validates what was typed before it puts the default in.
func orDefault(def string, check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" && def != "" && check(def) == nil {
			return nil
		}
		return check(s)
	}
}

func (q *asker) agents() error {
	all := q.a.Agents
	if len(all) == 0 {
		return nil
	}
	var opts []huh.Option[string]
	for _, a := range all {
		opts = append(opts, huh.NewOption(fmt.Sprintf("%s (image %s)", a.Name, a.Image), a.Name).Selected(true))
	}
	var chosen []string
	err := q.form("Agents", huh.NewMultiSelect[string]().Title("Agents that may be launched here (all are selected)").
		Options(opts...).Height(min(len(opts)+4, 14)).Value(&chosen))
	q.a.Agents = slices.DeleteFunc(all, func(a config.Agent) bool { return !slices.Contains(chosen, a.Name) })
	return err
}

// policies asks for each agent's policy where there is a choice.
func (q *asker) policies() error {
	var opts []huh.Option[string]
	for _, it := range q.rel.Items {
		if it.Kind == "policy" {
			opts = append(opts, huh.NewOption(it.PolicyName()+" (of this release)", it.PolicyName()))
		}
	}
	for _, p := range policies.Presets() {
		opts = append(opts, huh.NewOption(p+" (preset)", p))
	}
	var fields []huh.Field
	for i := range q.a.Agents {
		a := &q.a.Agents[i]
		fields = append(fields, huh.NewSelect[string]().Title("Policy of "+a.Name).Options(opts...).Height(min(len(opts)+2, 10)).Value(&a.Policy))
	}
	if len(fields) == 0 {
		return nil
	}
	return q.form("Policies", fields...)
}

func (q *asker) hosts() error {
	var s string
	err := q.form("Names without DNS", huh.NewInput().
		Title("Names that agents may ask for, as name=address, …; empty: none").
		Validate(func(s string) error { _, err := parseHosts(s); return err }).Value(&s))
	if err != nil {
		return err
	}
	q.a.Hosts, err = parseHosts(s)
	return err
}

// parseHosts reads "api.example.com=10.0.0.7, …".
func parseHosts(s string) (map[string]string, error) {
	out := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, addr, ok := strings.Cut(part, "=")
		name, addr = strings.TrimSpace(name), strings.TrimSpace(addr)
		if _, twice := out[name]; !ok || twice {
			return nil, fmt.Errorf("got %q; wanted each name once, as name=address", part)
		}
		out[name] = addr
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, config.ValidHosts(out)
}

// ports asks only where something listens already.
func (q *asker) ports() error {
	for q.has("ports") {
		for _, f := range q.refused() {
			if f.Check == "ports" {
				q.say("\nports: got %s; %s", f.Got, f.Remedy)
			}
		}
		fields := []huh.Field{address("registry", &q.a.Registry)}
		if q.a.Engine.Listen != "" {
			fields = append(fields, address("model engine", &q.a.Engine.Listen))
		}
		if err := q.form("Addresses", fields...); err != nil {
			return err
		}
	}
	return nil
}

func (q *asker) has(check string) bool {
	return slices.ContainsFunc(q.refused(), func(f installer.Finding) bool { return f.Check == check })
}

func address(what string, v *string) huh.Field {
	check := func(s string) error { return config.Loopback(what, s) }
	return huh.NewInput().Title("Address of the " + what + " (loopback:port)").Validate(orDefault(*v, check)).Value(v)
}

// weakenings asks, one by one, for what this machine cannot do without. The
// default is no.
func (q *asker) weakenings() error {
	for _, f := range q.refused() {
		if f.Weakening == "" || slices.Contains(q.a.Accept, f.Weakening) {
			continue
		}
		q.say("\n%s: got %s; wanted %s; %s", f.Check, f.Got, f.Wanted, f.Remedy)
		yes := false
		err := q.form("A weakening", huh.NewConfirm().
			Title(fmt.Sprintf("Accept %s for good? It will be in the audit log: %s.", f.Weakening, installer.Weakenings[f.Weakening])).
			Affirmative("Accept").Negative("No").Value(&yes))
		if err != nil {
			return err
		}
		if !yes {
			return &installer.ErrPreflight{Findings: []installer.Finding{f}}
		}
		q.a.Accept = append(q.a.Accept, f.Weakening)
	}
	return nil
}

// confirm shows the plan as plain text above the question, where it can be
// scrolled back to, and where a small terminal cuts nothing off.
func (q *asker) confirm() error {
	p, err := installer.NewPlan(q.facts, q.a, q.rel)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := p.Print(&text); err != nil {
		return err
	}
	q.say("\n%s", text.String())
	yes := false
	err = q.form("Ready", huh.NewConfirm().Title("Install this?").Affirmative("Install").Negative("No").Value(&yes))
	if err == nil && !yes {
		return ErrDeclined
	}
	return err
}
