// K3shost runs a real K3s on this machine until it is told to stop, for
// whoever wants to look at one or to develop against it.
//
//	k3shost up -dir DIR -k3s dist/k3s -version 1.35 [-store DIR] [-nodes 2]
//	k3shost exec DIR COMMAND...      in a machine that another `up` runs
//	k3shost kubectl DIR ARGS...
//
// `up` serves the store's images at 127.0.0.1:5000 inside each node; without
// -store, a copy of the images that `make k3s` built. Node N lies in DIR/nodeN.
// A second `up` with the same DIR finds the cluster as it was left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/k3shost"
	"github.com/clawbox/clawbox/registry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var code *exec.ExitError
	if errors.As(err, &code) {
		os.Exit(code.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) > 0 && args[0] == "up":
		return up(ctx, args[1:])
	case len(args) > 2 && args[0] == "exec":
		return inside(ctx, args[1], args[2:])
	case len(args) > 2 && args[0] == "kubectl":
		v, err := os.ReadFile(filepath.Join(args[1], "k3s-version"))
		if err != nil {
			return err
		}
		return inside(ctx, args[1], append([]string{"env", "KUBECONFIG=" + k3s.Kubeconf, "/k3s/" + string(v) + "/bin/kubectl"}, args[2:]...))
	}
	return errors.New("usage: k3shost up -dir DIR [flags], k3shost exec DIR COMMAND..., or k3shost kubectl DIR ARGS... (see the comment of this command)")
}

func inside(ctx context.Context, dir string, args []string) error {
	cmd := k3shost.Command(ctx, dir, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// site is what one `up` runs.
type site struct {
	dir, artifacts, version, store string
	lan                            *k3shost.LAN
	server                         *k3shost.Cluster
}

func up(ctx context.Context, args []string) (err error) {
	var s site
	var nodes int
	f := flag.NewFlagSet("up", flag.ExitOnError)
	f.StringVar(&s.dir, "dir", "", "folder for the nodes (required)")
	f.StringVar(&s.artifacts, "k3s", "dist/k3s", "what make k3s built")
	f.StringVar(&s.version, "version", "1.35", "of K3s")
	f.StringVar(&s.store, "store", "", "store whose images are served")
	f.IntVar(&nodes, "nodes", 1, "number of nodes")
	_ = f.Parse(args) // ExitOnError
	if s.dir == "" {
		return errors.New("k3shost: -dir is required")
	}
	if s.lan, err = k3shost.NewLAN(); err != nil {
		return err
	}
	defer s.lan.Close()
	if s.store == "" {
		s.store = filepath.Join(s.dir, "store")
		if _, err := os.Stat(s.store); err != nil {
			if err := os.CopyFS(s.store, os.DirFS(filepath.Join(s.artifacts, s.version, "images"))); err != nil {
				return err
			}
		}
	}
	for n := range nodes {
		m, err := s.node(ctx, fmt.Sprintf("node%d", n+1))
		if m != nil {
			defer m.Halt() //nolint:errcheck // the program ends
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("ready; k3shost kubectl %s/node1 get pods -A; end with Ctrl-C\n", s.dir)
	select {
	case <-ctx.Done():
		return nil
	case <-s.server.Done():
		return fmt.Errorf("K3s ended:\n%s", s.server.Tail(20))
	}
}

// node boots a machine, serves its registry, and waits for its K3s.
func (s *site) node(ctx context.Context, name string) (*k3shost.Machine, error) {
	m, err := k3shost.Boot(ctx, k3shost.Options{Name: name, Dir: filepath.Join(s.dir, name), LAN: s.lan, Artifacts: s.artifacts})
	if err != nil {
		return nil, err
	}
	store, err := content.Open(s.store)
	if err != nil {
		return m, err
	}
	l, err := m.Listen("tcp", k3shost.RegistryAddr)
	if err != nil {
		return m, err
	}
	srv := &http.Server{Handler: registry.New(store, registry.Options{}), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }() // until the program ends
	if err := os.WriteFile(filepath.Join(m.Dir, "k3s-version"), []byte(s.version), 0o644); err != nil {
		return m, err
	}
	c, err := m.StartK3s(ctx, k3shost.K3s{Version: s.version, Images: k3s.SourceImages, Server: s.server})
	if err != nil {
		return m, err
	}
	if s.server == nil {
		s.server = c
	}
	err = s.server.WaitNode(ctx, name)
	for _, p := range m.Phases() {
		fmt.Printf("%8.2f s  %s\n", p.Took.Seconds(), p.Name)
	}
	return m, err
}
