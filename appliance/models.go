package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/engine"
	"github.com/clawbox/clawbox/bundle/content"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// engineStart bounds how long the engine may take to answer for the first
// time. The model itself is loaded at the first call.
const engineStart = 60 * time.Second

// titleKey is the OCI annotation that names a layer's file.
const titleKey = "org.opencontainers.image.title"

// startEngine lays the configured models out and starts the embedded engine.
func (a *Appliance) startEngine(ctx context.Context) error {
	c := a.cfg.Engine
	if c.Binary == "" {
		a.mu.Lock()
		a.engineWhy = "this release carries no embedded engine"
		a.mu.Unlock()
		return nil
	}
	models, err := a.models(c.Models)
	if err != nil {
		return err
	}
	dir := filepath.Join(a.cfg.Paths.State, "engine")
	if err := engine.Prepare(dir, models); err != nil {
		return err
	}
	out, err := openOutput(filepath.Join(a.cfg.Paths.State, "engine.log"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, engineStart)
	defer cancel()
	e, err := engine.Start(ctx, engine.Config{
		Binary: c.Binary, Dir: dir, Listen: c.Listen, Log: out, UID: c.UID, GID: c.UID, NetNS: a.engineNet,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			relay, err := a.part("relay").conn()
			if err != nil {
				return nil, err
			}
			return dialThrough(ctx, relay, callDial)
		},
	})
	if err != nil {
		out.Close()
		return err
	}
	slog.Info("the model engine answers", "address", c.Listen, "models", c.Models)
	a.mu.Lock()
	a.engine = e
	a.mu.Unlock()
	return nil
}

// models finds the layers of each model in the store.
func (a *Appliance) models(refs []string) ([]engine.Model, error) {
	var ms []engine.Model
	for _, ref := range refs {
		m, err := storedModel(a.store, ref)
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", ref, err)
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// storedModel reads a ModelPack artifact's manifest. Its name is the last
// element of the ref, without the tag.
func storedModel(s *content.Store, ref string) (engine.Model, error) {
	name, _, _ := strings.Cut(path.Base(ref), ":")
	m := engine.Model{Name: name}
	d, err := s.Resolve(ref)
	if err != nil {
		return m, err
	}
	b, err := os.ReadFile(s.Path(d.Digest))
	if err != nil {
		return m, err
	}
	var man v1.Manifest
	if err := json.Unmarshal(b, &man); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	for _, l := range man.Layers {
		m.Layers = append(m.Layers, engine.Layer{
			MediaType: string(l.MediaType), Title: l.Annotations[titleKey],
			Digest: l.Digest.String(), Size: l.Size, Path: s.Path(l.Digest),
		})
	}
	return m, nil
}
