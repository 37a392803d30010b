package model

import (
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Inspect looks at headers and configuration of a model that another tool
// packed, without reading its weights. ok is false when the manifest is no
// ModelPack artifact.
func Inspect(m *v1.Manifest, open func(v1.Hash) (*os.File, error), o Options) (files []File, facts Facts, ok bool, err error) {
	if m.ArtifactType != ArtifactType && m.Config.MediaType != configType {
		return nil, facts, false, nil
	}
	if files, err = unpack(m); err != nil {
		return nil, facts, true, fmt.Errorf("model: %w", err)
	}
	if facts, err = inspect(files, func(x File) (*os.File, error) { return open(x.Digest) }); err == nil {
		err = (&Folder{Files: files}).allowed(o)
	}
	if err != nil {
		return nil, facts, true, fmt.Errorf("model: %w", err)
	}
	return files, facts, true, nil
}
