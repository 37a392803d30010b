package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/serve"
	"github.com/clawbox/clawbox/registry"
	"github.com/spf13/cobra"
)

func registryCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "registry", Short: "Serve a store as an OCI registry, and look after it"}
	c.AddCommand(registryServeCmd(), registryCollectCmd(a), registryUserCmd(a))
	return group(c)
}

// registryServe are the options of `registry serve`.
type registryServe struct {
	listen, users, cert, tlsKey, clientCA string
	push                                  bool
	allow, media                          []string
	mediaFlags
}

func registryServeCmd() *cobra.Command {
	var o registryServe
	c := &cobra.Command{
		Use:   "serve [STORE]",
		Short: "Serve a store, or a bundle from its media, in the foreground",
		Long: `Serve a store as an OCI registry in the foreground. The appliance serves its own;
this is for a machine where bundles are made, or for tests.

With --media and --key a bundle is served for pulling, straight from its parts:
crane, skopeo and container engines see it as a registry, nothing is written
anywhere, and no byte is sent before the chunk that it lies in was proved. What a
differential bundle leaves out is named and not served.

Without --allow whoever connects from this host may pull, and nobody may do
anything else. Each --allow adds a rule "WHO REPOS RIGHT,RIGHT…":

  WHO    loopback, anyone, user:NAME (of --users) or cert:NAME (of --client-ca);
         NAME may be *
  REPOS  a repository, PREFIX/** for those below, or **
  RIGHT  pull, push or delete

Names that a loaded bundle brought can be pulled and never changed. With --push a
store that isn't there is begun.`,
		Example: `  clawbox registry user op --file users < password
  clawbox registry serve store --listen :5000 --cert c.pem --cert-key k.pem \
      --users users --push --allow "loopback ** pull" --allow "user:op ** pull,push,delete"
  clawbox registry serve --media /media/stick --key acme.pub`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 == (len(o.media) > 0) {
				return usageError{fmt.Errorf("%d stores and %d media directories: want one store, or --media; usage: %s", len(args), len(o.media), cmd.UseLine())}
			}
			return o.run(cmd.Context(), cmd.ErrOrStderr(), strings.Join(args, ""))
		},
	}
	f := c.Flags()
	o.add(c)
	f.StringArrayVar(&o.media, "media", nil, "directory of a bundle to serve (repeatable: all the sticks of one bundle)")
	f.StringVar(&o.listen, "listen", "127.0.0.1:5000", "address to listen on; other hosts need --cert")
	f.StringVar(&o.users, "users", "", "file of names and passwords (htpasswd with bcrypt)")
	f.StringVar(&o.cert, "cert", "", "certificate chain (PEM), for TLS")
	f.StringVar(&o.tlsKey, "cert-key", "", "the certificate's key (PEM)")
	f.StringVar(&o.clientCA, "client-ca", "", "authority of clients' certificates (PEM)")
	f.BoolVar(&o.push, "push", false, "take pushes and deletions, too")
	f.StringArrayVar(&o.allow, "allow", nil, "add a rule")
	c.MarkFlagsRequiredTogether("cert", "cert-key")
	return c
}

func (o *registryServe) run(ctx context.Context, log io.Writer, store string) error {
	if o.clientCA != "" && o.cert == "" {
		return usageError{errors.New("--client-ca needs TLS: give --cert and --cert-key")}
	}
	h, err := o.handler(ctx, log, store)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer l.Close()
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() && o.cert == "" {
		return usageError{fmt.Errorf("--listen %s is open to other hosts, and passwords and content would go in clear: give --cert and --cert-key, or listen on 127.0.0.1", o.listen)}
	}
	if o.cert != "" {
		conf, err := registry.TLS(o.cert, o.tlsKey, o.clientCA)
		if err != nil {
			return err
		}
		l = tls.NewListener(l, conf)
	}
	fmt.Fprintf(log, "serving %s on %s\n", strings.Join(append(o.media, store)[:max(1, len(o.media))], ", "), l.Addr())
	return serveHTTP(ctx, h, l)
}

func (o *registryServe) handler(ctx context.Context, log io.Writer, store string) (http.Handler, error) {
	opts, err := o.common(log)
	if err != nil {
		return nil, err
	}
	if len(o.media) > 0 {
		return o.mediaHandler(ctx, opts)
	}
	if len(o.keys)+len(o.identities) > 0 || o.threshold != 0 {
		return nil, usageError{errors.New("--key, --threshold and --identity are for --media: a store has been verified; TLS has --cert and --cert-key")}
	}
	if _, err := os.Stat(store); err != nil && !o.push { // an empty one serves nobody
		return nil, fmt.Errorf("%w: want a store, or --push to begin one", err)
	}
	s, err := content.Open(store)
	if err != nil {
		return nil, err
	}
	return registry.Open(s, opts)
}

func (o *registryServe) common(log io.Writer) (opts registry.Options, err error) {
	opts = registry.Options{Push: o.push, Log: slog.New(slog.NewTextHandler(log, nil))}
	for _, text := range o.allow {
		r, err := registry.ParseRule(text)
		if err != nil {
			return opts, usageError{fmt.Errorf("--allow: %w", err)}
		}
		opts.Rules = append(opts.Rules, r)
	}
	if o.users != "" {
		opts.Users, err = registry.OpenUsers(o.users)
	}
	return opts, err
}

// mediaHandler serves a bundle, and says what of it can't be served.
func (o *registryServe) mediaHandler(ctx context.Context, opts registry.Options) (http.Handler, error) {
	if o.push {
		return nil, usageError{errors.New("--push with --media: a bundle is signed and never changes; load it into a store and serve that")}
	}
	m, err := o.open(o.media)
	if err != nil {
		return nil, err
	}
	src, err := serve.Media(ctx, m, opts.Log)
	if err != nil {
		return nil, err
	}
	return registry.Of(src, opts)
}

// serveHTTP serves until ctx ends; requests under way get some seconds then.
func serveHTTP(ctx context.Context, h http.Handler, l net.Listener) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return errors.Join(err, srv.Close()) // uploads are kept, and can go on
	}
	return nil
}

func registryCollectCmd(a *app) *cobra.Command {
	var o registry.CollectOptions
	c := &cobra.Command{
		Use:   "gc STORE",
		Short: "Delete from a store what nobody needs",
		Long: `Delete what no name of a loaded bundle, no pushed manifest and no upload under way
needs; an appliance's store has names for the release that is installed and for
the one that is kept. Pushes wait meanwhile; while a bundle is loaded into the store
it is refused. Blobs of a load that was cut off stay for as long as --older-than
says, so that the load can go on.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err != nil { // not make an empty one
				return err
			}
			s, err := content.Open(args[0])
			if err != nil {
				return err
			}
			got, err := registry.Collect(cmd.Context(), s, o)
			if err != nil {
				return err
			}
			return printCollected(a, cmd.OutOrStdout(), got, o.DryRun)
		},
	}
	f := c.Flags()
	f.DurationVar(&o.Grace, "older-than", 24*time.Hour, "keep what is younger, such as 90m")
	f.BoolVar(&o.Untagged, "untagged", false, "also delete pushed manifests that no tag reaches")
	f.BoolVar(&o.DryRun, "dry-run", false, "only say what would go")
	return c
}

func printCollected(a *app, w io.Writer, got registry.Collected, dry bool) error {
	v := struct {
		DryRun    bool  `json:"dryRun"`
		Kept      int   `json:"kept"`
		Deleted   int   `json:"deleted"`
		Bytes     int64 `json:"bytes"`
		Uploads   int   `json:"uploads"`
		Blobs     int   `json:"unusedBlobs"`
		Manifests int   `json:"untaggedManifests"`
	}{dry, got.Kept, got.Deleted, got.Bytes, got.Partial, got.Blobs, got.Manifests}
	verb := "deleted"
	if dry {
		verb = "would delete"
	}
	return a.print(w, v, func(w io.Writer) {
		fmt.Fprintf(w, "%s %d blobs and %d unfinished ones, %d bytes; kept %d\n", verb, got.Deleted, got.Partial, got.Bytes, got.Kept)
		fmt.Fprintf(w, "%s the names of %d unused blobs and %d untagged manifests\n", verb, got.Blobs, got.Manifests)
	})
}

func registryUserCmd(a *app) *cobra.Command {
	var file string
	var remove bool
	c := &cobra.Command{
		Use:   "user NAME",
		Short: "Set a user's password, read from standard input",
		Long: `Set a user's password in a file of users, in the form that 'htpasswd -B' has. The
password is the first line of standard input, 8 to 72 bytes. A registry that
runs takes the change over at once.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			password := ""
			if !remove {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1024)).ReadString('\n')
				if password = strings.TrimRight(line, "\r\n"); password == "" {
					return usageError{errors.Join(errors.New("no password on standard input"), err)}
				}
			}
			if err := registry.SetUser(file, args[0], password); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), map[string]any{"user": args[0], "file": file, "removed": remove}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s\n", file, args[0])
			})
		},
	}
	c.Flags().StringVar(&file, "file", "", "the file of users")
	c.Flags().BoolVar(&remove, "remove", false, "take the user away")
	_ = c.MarkFlagRequired("file") // the flag is there
	return c
}
