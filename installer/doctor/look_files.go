package doctor

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/pods"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// keys looks at every file with a secret that the configuration names.
func (g *looking) keys() error {
	type file struct{ path, what string }
	files := []file{{g.l.LedgerS(), "the ledger's key: without it no entry can be added"}}
	for name, u := range g.cfg.Upstreams {
		if u.KeyFile != "" {
			files = append(files, file{u.KeyFile, "the key of the model endpoint " + name})
		}
	}
	for name, c := range g.cfg.Credentials {
		files = append(files, file{c.KeyFile, "the credential " + name})
	}
	if c := g.cfg.Cluster; c != nil {
		files = append(files, file{c.Kubeconfig, "the account on the cluster: without it the appliance does not start; 'clawbox cluster apply' makes it again"})
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	for _, f := range files {
		k := Key{Path: f.path, What: f.what}
		st, err := os.Stat(f.path)
		switch {
		case err != nil:
			k.Fault = err.Error()
		case st.Mode().Perm()&0o077 != 0:
			k.Fault = fmt.Sprintf("mode %04o, others may read it", st.Mode().Perm())
		}
		g.Keys = append(g.Keys, k)
	}
	return g.pair()
}

// pair holds the ledger's two keys against each other.
func (g *looking) pair() error {
	s, err := manifest.LoadSigner(g.l.LedgerS())
	if err != nil {
		return nil // its row says so
	}
	b, err := os.ReadFile(g.l.LedgerV())
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) != s.Key() {
		g.Keys = append(g.Keys, Key{Path: g.l.LedgerV(), What: "the ledger's public key", Fault: "it is not the other half of " + g.l.LedgerS()})
	}
	return nil
}

// pods looks at the three files by which containerd asks this appliance, from
// the last to the first.
func (g *looking) pods() error {
	g.Pods.Cluster = g.cfg.Cluster != nil
	template, err := os.ReadFile(g.l.ContainerdTemplate())
	if errors.Is(err, fs.ErrNotExist) && !g.Pods.Cluster {
		return nil // not a node
	}
	if err != nil {
		return err
	}
	g.Pods.Placed = true
	entry, err := pods.Containerd(g.l.Runtime())
	if err != nil {
		return err
	}
	s, serr := settings.Of(g.l.Runtime())
	st, rerr := os.Stat(g.l.Runtime())
	socket := filepath.Join(g.cfg.Paths.Run, settings.Socket)
	switch {
	case !strings.Contains(string(template), entry):
		g.Pods.Fault = g.l.ContainerdTemplate() + " does not name " + g.l.Runtime()
	case rerr != nil:
		g.Pods.Fault = rerr.Error()
	case st.Mode().Perm()&0o111 == 0:
		g.Pods.Fault = g.l.Runtime() + " can't be executed"
	case serr != nil:
		g.Pods.Fault = serr.Error()
	case s.Socket != socket:
		g.Pods.Fault = fmt.Sprintf("the runtime asks %s, the appliance answers on %s", s.Socket, socket)
	case g.Pods.Cluster && s.Namespace != g.cfg.Cluster.Namespace:
		g.Pods.Fault = fmt.Sprintf("the runtime watches the namespace %s, the appliance has %s", s.Namespace, g.cfg.Cluster.Namespace)
	}
	return nil
}

// nodeTime is how long a cluster may take to answer.
const nodeTime = 8 * time.Second

// node asks the cluster itself.
func (g *looking) node() error {
	ctx, cancel := context.WithTimeout(g.ctx, nodeTime)
	defer cancel()
	var fault error
	if g.Node.Placed, fault = installer.LookNode(ctx, g.Root); fault != nil {
		g.Node.Fault = fault.Error()
	}
	return nil
}

func (g *looking) trust() error {
	t, where, err := installer.Trust(g.Root, 0)
	if err != nil {
		return err
	}
	g.Trust = Trust{Where: where, Threshold: t.Threshold()}
	for _, k := range t.Keys() {
		name, _, _ := strings.Cut(k, "+")
		g.Trust.Keys = append(g.Trust.Keys, name)
	}
	if r, _, ok := t.Root(); ok {
		g.Trust.Root = r.Version
	}
	return nil
}

func (g *looking) certificates() error {
	for _, d := range certificateDirs {
		for _, ext := range []string{"*.crt", "*.pem", "*.cert"} {
			found, err := filepath.Glob(filepath.Join(g.Root, d.path, ext))
			if err != nil {
				return err
			}
			for _, p := range found {
				if err := g.certificate(p, d.renews); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (g *looking) certificate(path string, renews bool) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for blk, rest := pem.Decode(b); blk != nil; blk, rest = pem.Decode(rest) {
		if blk.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(blk.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		g.Expires = append(g.Expires, Expiry{path, c.Subject.CommonName, c.NotAfter.UTC(), renews})
	}
	return nil
}

// store looks for every blob of the release, by name and size.
func (g *looking) store() error {
	for _, it := range g.rel.Items {
		if err := g.blob(it.Digest, -1, it.Name); err != nil {
			return err
		}
	}
	return nil
}

// blob looks for one blob, and where it is a manifest for what that names.
func (g *looking) blob(h v1.Hash, size int64, item string) error {
	path := filepath.Join(g.cfg.Paths.Store, "blobs", h.Algorithm, h.Hex)
	st, err := os.Stat(path)
	if err != nil || size >= 0 && st.Size() != size {
		g.Missing = append(g.Missing, fmt.Sprintf("%s (%.19s…)", item, h))
		return nil
	}
	if size >= 0 { // a leaf
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m struct {
		Config            *v1.Descriptor
		Layers, Manifests []v1.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		g.Missing = append(g.Missing, fmt.Sprintf("%s (%.19s…): not a manifest", item, h))
		return nil
	}
	for _, d := range m.Manifests {
		if err := g.blob(d.Digest, -1, item); err != nil {
			return err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, d := range m.Layers {
		if err := g.blob(d.Digest, d.Size, item); err != nil {
			return err
		}
	}
	return nil
}
