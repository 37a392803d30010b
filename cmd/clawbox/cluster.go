package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/spf13/cobra"
)

// maxToken bounds a token file, in bytes.
const maxToken = 4 << 10

// longestToken is how long a token may live: a node joins today or not at all.
const longestToken = 24 * time.Hour

// joinFlags are the options of join.
type joinFlags struct {
	installFlags
	server, address, node, operator, start string
	accept                                 []string
}

func joinCmd(a *app) *cobra.Command {
	var f joinFlags
	c := &cobra.Command{
		Use:   "join MEDIA... --server https://ADDRESS:6443 --token-file FILE",
		Short: "Make this offline host a further node of a cluster",
		Long: `Make this offline host a further node of a cluster.

On the server, 'clawbox token create' prints a token; it names the server's
certificate, so that this host knows whom it joins. MEDIA are those that the
server was installed from: a node has a store of its own, and no image travels
between nodes. Preflight, plan and resumption are those of 'clawbox install'.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.answers == "" {
				f.choose = func(h host.Facts, r installer.Release) (installer.Answers, error) { return f.asAgent(a, cmd, r) }
			}
			return install(cmd, a, f.installFlags, args)
		},
	}
	f.register(c)
	fl := c.Flags()
	fl.StringVar(&f.server, "server", "", "the server's address, such as https://10.0.0.1:6443")
	fl.StringVar(&f.tokenFile, "token-file", "", `file with the token, "-" for standard input`)
	fl.StringVar(&f.token, "token", "", "the token itself (others on this host can see it while this runs: better --token-file)")
	fl.StringVar(&f.address, "address", "", "this node's IPv4 address (default: the only one)")
	fl.StringVar(&f.node, "node", "", "this node's name (default: the hostname)")
	fl.StringVar(&f.operator, "operator", os.Getenv("SUDO_USER"), "who answers for this installation")
	fl.StringVar(&f.start, "start", "systemd", `"systemd" or "none"`)
	fl.StringArrayVar(&f.accept, "accept", nil, "a weakening to accept by name (repeatable)")
	return c
}

// asAgent makes the answers of a node that joins out of flags, or takes those
// of an earlier run.
func (f *joinFlags) asAgent(a *app, cmd *cobra.Command, r installer.Release) (installer.Answers, error) {
	if kept, ok, err := installer.Kept(a.root, r); ok || err != nil {
		return kept, err
	}
	ans := installer.DefaultAnswers(r)
	ans.Profile, ans.Root, ans.Operator, ans.Start, ans.Accept = "cluster", a.root, f.operator, f.start, f.accept
	ans.Cluster = installer.ClusterAnswers{Role: installer.RoleAgent, Server: f.server, Address: f.address, Node: f.node}
	if err := ans.Validate(); err != nil {
		return ans, usageError{err}
	}
	return ans, nil
}

// joinToken reads the token that was given, if any.
func (f installFlags) joinToken(in io.Reader) (string, error) {
	switch {
	case f.token != "" && f.tokenFile != "":
		return "", usageError{errors.New("got --token and --token-file; want one of them")}
	case f.tokenFile == "":
		return f.token, nil
	case f.tokenFile != "-":
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	t := strings.TrimSpace(string(b))
	if t == "" {
		return "", usageError{fmt.Errorf("token: got nothing from %s; want what 'clawbox token create' printed", f.tokenFile)}
	}
	return t, nil
}

func tokenCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make the tokens by which nodes join this cluster"}
	c.AddCommand(tokenCreateCmd(a))
	return group(c)
}

func tokenCreateCmd(a *app) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create",
		Short: "Print a token with which nodes may join for a while",
		Long: `Print a token with which nodes may join for a while.

K3s makes it (k3s token create) and takes it away when its time is over. It is a
secret: whoever has it can add a node, and see what pods there are given. Nodes
that have joined keep a certificate of their own and need it no longer.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Minute || ttl > longestToken {
				return usageError{fmt.Errorf("--ttl: got %s; want 1m to %s", ttl, longestToken)}
			}
			tok, err := createToken(cmd.Context(), a.root, ttl)
			if err != nil {
				return err
			}
			v := map[string]string{"token": tok, "expires": time.Now().Add(ttl).UTC().Format(time.RFC3339)}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintln(w, tok) })
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token is good for")
	return c
}

// createToken asks the slot's own K3s for one.
func createToken(ctx context.Context, root string, ttl time.Duration) (string, error) {
	l := installer.Layout{Prefix: root}
	k3s := filepath.Join(l.Current(), "bin", "k3s")
	if _, err := os.Stat(l.Kubeconfig()); err != nil {
		return "", fmt.Errorf("%w; want a running server of the profile cluster; look at: systemctl status k3s", err)
	}
	cmd := exec.CommandContext(ctx, k3s, "token", "create", "--kubeconfig", l.Kubeconfig(), "--ttl", ttl.String(), "--description", "clawbox token create")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("k3s token create: %w: %.500s", err, strings.TrimSpace(errs.String()))
	}
	tok := strings.TrimSpace(string(out))
	return tok, installer.ValidToken(tok)
}

func clusterCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "What runs on this cluster"}
	c.AddCommand(clusterApplyCmd(a), clusterServeCmd(a))
	return group(c)
}

func clusterServeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "serve server|agent",
		Short: "Run this node's K3s: that of the release in place, or of the one that is tried",
		Long: `Run this node's K3s: that of the release in place, or of the one that is tried.

The unit k3s.service does this. While an upgrade keeps or puts back the cluster's
state it waits; then it becomes K3s, with the role that is given.`,
		Args: usageArgs(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)), ValidArgs: []string{installer.RoleServer, installer.RoleAgent},
		RunE: func(cmd *cobra.Command, args []string) error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("K3s needs root, got uid %d", os.Geteuid())
			}
			s, err := installer.BootNode(cmd.Context(), a.root, args[0], func(why string) { slog.Warn("k3s waits", "for", why) })
			if err != nil {
				return err
			}
			return s.Enter(a.root, func(program string, args, env []string) error {
				err := syscall.Exec(program, args, env)
				return fmt.Errorf("%s: %w", program, err)
			})
		},
	}
}

func clusterApplyCmd(a *app) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "apply",
		Short: "Install what the cluster is to run: namespaces, tenants, GPUs, telemetry, models",
		Long: `Install what the cluster is to run: namespaces with quotas and denied by default,
tenants, and the charts for GPUs, telemetry and models. The installer does this
where it starts K3s itself; after 'start: none', or when something was taken away
by hand, this does. What is there already is left alone. On a node that joined
it only fetches the account by which the appliance makes agents' pods.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			did, err := applyCluster(cmd, a, wait)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), map[string]string{"changed": did}, func(w io.Writer) {
				if did == "" {
					did = "nothing to change"
				}
				fmt.Fprintln(w, did)
			})
		},
	}
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how long to wait for the node to be ready")
	return c
}

func applyCluster(cmd *cobra.Command, a *app, wait time.Duration) (string, error) {
	run, err := installer.LoadRunning(a.root)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), wait)
	defer cancel()
	l := installer.Layout{Prefix: a.root}
	cl := l.Cluster(func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), s) })
	did := ""
	if run.Role == installer.RoleServer {
		if err := cl.Ready(ctx, l.Kubeconfig(), run.Node); err != nil {
			return "", err
		}
		if did, err = cl.Apply(cmd.Context(), l.Kubeconfig(), run.Charts); err != nil {
			return "", err
		}
	}
	account, cancel := context.WithTimeout(cmd.Context(), wait)
	defer cancel()
	told, err := installer.Connect(account, a.root, cl)
	if told != "" {
		told += "; start the appliance again: it takes up its account on the cluster then"
	}
	return strings.Trim(did+", "+told, ", "), err
}
