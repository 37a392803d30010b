package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// Contents is a bundle to look into, not to load: its parts may be missing, and
// without a trust nobody vouches for it. Only when Verified is true has anybody
// whom the caller trusts signed what it returns.
type Contents struct {
	Verified bool

	m *Media
}

// Look opens release.note and index.json, and no more: the parts are opened when
// something in them is asked for. With the zero Trust nothing is verified. With
// a trust, a bundle that it didn't sign is an error, as in Open.
func (o MediaOptions) Look() (*Contents, error) {
	m, err := o.media()
	if err != nil {
		return nil, err
	}
	c := &Contents{Verified: !o.Trust.Empty(), m: m}
	if c.Verified {
		err = m.verified(o.Trust)
	} else {
		m.release, _, err = manifest.Unverified(m.note)
	}
	if err == nil {
		err = m.readIndex()
	}
	if err != nil {
		return nil, err
	}
	m.parts, m.parity = findParts(m.release, m.dirs).whole(), findParity(m.release, m.dirs).whole()
	return c, nil
}

// Release returns the release, with its items.
func (c *Contents) Release() manifest.Release { return c.m.release }

// Blobs returns the index.
func (c *Contents) Blobs() []manifest.Blob { return slices.Clone(c.m.index.Blobs) }

// Signers returns the names of the trusted keys that signed; none without a
// trust.
func (c *Contents) Signers() []string { return c.m.Signers() }

// Digest returns the sha256 of release.note.
func (c *Contents) Digest() v1.Hash { return c.m.Digest() }

// Parts says how many parts and parity parts there are, and how many of them
// can't be found.
func (c *Contents) Parts() (all, lost int) {
	return len(c.m.parts) + len(c.m.parity), len(c.m.Lost())
}

// Refs is Media.Refs.
func (c *Contents) Refs(ctx context.Context) ([]v1.Descriptor, error) { return c.m.Refs(ctx) }

// Open opens a blob: see Media.OpenBlob. A part that is missing is an error of
// Read.
func (c *Contents) Open(ctx context.Context, h v1.Hash) (io.ReadCloser, error) {
	return c.m.OpenBlob(ctx, h, nil)
}

// media reads the note.
func (o MediaOptions) media() (*Media, error) {
	note, err := readNote(o.Dirs)
	if err != nil {
		return nil, err
	}
	return &Media{note: note, dirs: slices.Clone(o.Dirs), ids: o.Identities, names: &owners{}, beyond: &beyond{}, blobs: map[v1.Hash]manifest.Blob{}, open: openPart, pause: patience}, nil
}

// verified follows the roots on the media from t and verifies the note.
func (m *Media) verified(t manifest.Trust) (err error) {
	if m.trust, err = t.Follow(m.readRoot); err != nil {
		return fmt.Errorf("media: %w", err)
	}
	if m.release, m.signers, err = m.trust.Open(m.note); err != nil {
		return fmt.Errorf("media %s: %w", strings.Join(m.dirs, ", "), err)
	}
	return nil
}

// readIndex reads the index that the release names.
func (m *Media) readIndex() (err error) {
	if m.index, err = readIndex(m.release, m.dirs, m.ids...); err != nil {
		return err
	}
	if m.release.Encryption != "" {
		m.release.Items = m.index.Items
	}
	for _, b := range m.index.Blobs {
		m.blobs[b.Digest] = b
	}
	return nil
}

// referrer describes a manifest that has a subject; false for all else.
func referrer(raw []byte) (d v1.Descriptor, ok bool) {
	if !bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) {
		return d, false
	}
	var j struct {
		MediaType    types.MediaType `json:"mediaType"`
		ArtifactType string          `json:"artifactType"`
		Subject      *v1.Descriptor  `json:"subject"`
	}
	if err := json.Unmarshal(raw, &j); err != nil || j.Subject == nil || !isManifest(v1.Descriptor{MediaType: j.MediaType}) {
		return d, false
	}
	return v1.Descriptor{MediaType: j.MediaType, ArtifactType: j.ArtifactType}, true
}
