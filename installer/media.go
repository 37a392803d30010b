package installer

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer/host"
)

// FromMedia is the installer's view of opened, and so verified, media, and
// what Run needs to load them. trust is what they were opened with. The caller
// may add the other fields of Env.
func FromMedia(m *bundle.Media, trust manifest.Trust, p bundle.Progress) (Release, Env, error) {
	r, err := FromManifest(m.Release(), m.Digest().String(), m.Signers())
	if err != nil {
		return Release{}, Env{}, err
	}
	load := func(ctx context.Context, s *content.Store) error { return m.Load(ctx, s, p) }
	if _, _, ok := trust.Root(); ok {
		trust = m.Trust() // the newest root that the media's chain led to
	}
	return r, Env{Trust: trust, Load: load}, nil
}

// LoadBeside is ChangeEnv.Load of media.
func LoadBeside(m *bundle.Media, p bundle.Progress) func(context.Context, *content.Store) error {
	return func(ctx context.Context, s *content.Store) error {
		return m.LoadWith(ctx, s, bundle.LoadOptions{Progress: p, Beside: true})
	}
}

// MediaRate measures how fast the media below dirs are read, in bytes per
// second, for Facts.MediaRead.
func MediaRate(dirs ...string) (int64, error) {
	errs := []error{errors.New("no part of the bundle in any of the folders")}
	for _, d := range dirs {
		parts, err := filepath.Glob(filepath.Join(d, "clawbox", "parts", "part-*"))
		if err != nil || len(parts) == 0 {
			continue
		}
		n, err := host.ReadRate(parts[0])
		if err == nil {
			return n, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}
