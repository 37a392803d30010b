package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

// Model is a model in a store.
type Model struct {
	About
	Manifest v1.Descriptor
	Facts    Facts  // as its config says; Verify reads the files
	Files    []File // with digests

	config v1.Descriptor
}

// Size is the sum of its files in bytes.
func (m Model) Size() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Progress hears of n more bytes of a file; nil is allowed.
type Progress func(name string, n int64)

// Import brings a folder into the store and tags it. Each byte is read once and
// written once. A file that has the size of one in the store is hashed first,
// and not written when it is the same. After an error nothing is tagged.
func Import(ctx context.Context, s *content.Store, f *Folder, a About, p Progress) (Model, error) {
	a, err := a.filled()
	if err != nil {
		return Model{}, err
	}
	if err := content.CheckRef(a.Ref); err != nil {
		return Model{}, err
	}
	files := make([]File, len(f.Files))
	known, err := sizes(s)
	if err != nil {
		return Model{}, err
	}
	for i, x := range f.Files {
		if x.Digest, err = take(ctx, s, f, x, known, p); err != nil {
			return Model{}, fmt.Errorf("model %s: %s: %w", f.Path, x.Name, err)
		}
		files[i] = x
	}
	release, err := s.Hold() // a collection must not take the blobs before they have a name
	if err != nil {
		return Model{}, err
	}
	defer release()
	for _, x := range files {
		if _, err := s.Stat(x.Digest); err != nil {
			return Model{}, fmt.Errorf("model %s: %s was collected meanwhile: import it again: %w", f.Path, x.Name, err)
		}
	}
	// The source may have changed since Scan; what is in the store can't.
	facts, err := inspect(files, func(x File) (*os.File, error) { return s.Open(x.Digest) })
	if err != nil {
		return Model{}, fmt.Errorf("model %s: it changed while it was read: %w", f.Path, err)
	}
	m := Model{About: a, Facts: facts, Files: files}
	return m, m.tag(ctx, s)
}

// sizes are the sizes of the blobs in the store; what an interrupted import left
// there is not written again.
func sizes(s *content.Store) (map[int64]bool, error) {
	out := map[int64]bool{}
	return out, s.Walk(func(_ v1.Hash, n int64) error { out[n] = true; return nil })
}

// take stores one file, which must have kept its size and its kind.
func take(ctx context.Context, s *content.Store, f *Folder, x File, known map[int64]bool, p Progress) (v1.Hash, error) {
	in, err := f.openRegular(x)
	if err != nil {
		return v1.Hash{}, err
	}
	defer in.Close()
	now := File{Name: x.Name, Kind: fit(x.Name).kind, Format: fit(x.Name).format}
	if err := now.sniff(in); err != nil || now.Kind != x.Kind {
		return v1.Hash{}, errors.Join(err, fmt.Errorf("it was a %s file and is a %s file now", x.Kind, now.Kind))
	}
	src := counted{ctx, in, x.Name, p}
	if known[x.Size] {
		h, n, err := hash(src)
		if err != nil {
			return h, err
		}
		if have, err := s.Stat(h); err == nil && have == n && n == x.Size {
			return h, nil
		}
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return h, err
		}
	}
	w, err := s.Create(v1.Hash{}, x.Size)
	if err != nil {
		return v1.Hash{}, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, src, make([]byte, 1<<20)); err != nil {
		return v1.Hash{}, errors.Join(err, w.Abort())
	}
	h := w.Digest()
	return h, w.Commit()
}

// counted reports what is read, and stops when its context ends.
type counted struct {
	ctx  context.Context
	r    io.Reader
	name string
	p    Progress
}

func (c counted) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	if c.p != nil {
		c.p(c.name, int64(n))
	}
	return n, err
}

func hash(r io.Reader) (v1.Hash, int64, error) {
	s := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{s}, r, make([]byte, 1<<20))
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(s.Sum(nil))}, n, err
}

// tag writes config and manifest, and the name last.
func (m *Model) tag(ctx context.Context, s *content.Store) error {
	config, layers, err := Pack(m.About, m.Facts, m.Files)
	if err != nil {
		return err
	}
	if m.config, err = put(ctx, s, configType, config); err != nil {
		return err
	}
	raw, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: ArtifactType, Config: m.config, Layers: layers})
	if err != nil {
		return err
	}
	if len(raw) > maxManifest {
		return fmt.Errorf("model %s: a manifest of %d bytes, want at most %d: it has too many files", m.Name, len(raw), maxManifest)
	}
	if m.Manifest, err = put(ctx, s, types.OCIManifestSchema1, raw); err != nil {
		return err
	}
	m.Manifest.ArtifactType = ArtifactType
	return s.Tag(m.Ref, m.Manifest)
}

func put(ctx context.Context, s *content.Store, mt types.MediaType, b []byte) (v1.Descriptor, error) {
	h, n, err := hash(bytes.NewReader(b))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mt, Digest: h, Size: n}, s.Put(ctx, h, n, bytes.NewReader(b))
}

// List returns the models that the store has a name for, in its order. A model
// that can't be read is an error; other manifests, and pins, are passed over.
func List(s *content.Store) ([]Model, error) {
	ds, err := s.Refs()
	if err != nil {
		return nil, err
	}
	var out []Model
	for _, d := range ds {
		if d.Annotations[content.Pinned] != "" {
			continue
		}
		m, err := read(s, d)
		if errors.Is(err, errNot) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// Open returns the model that ref names; fs.ErrNotExist when there is none.
func Open(s *content.Store, ref string) (Model, error) {
	d, err := s.Resolve(ref)
	if err != nil {
		return Model{}, err
	}
	return read(s, d)
}

// read parses the manifest d, after checking its digest.
func read(s *content.Store, d v1.Descriptor) (Model, error) {
	m := Model{Manifest: d}
	m.Ref = d.Annotations[content.RefName]
	fail := func(err error) (Model, error) { return m, fmt.Errorf("%s: %w", m.Ref, err) }
	if !d.MediaType.IsImage() {
		return fail(errNot)
	}
	raw, err := blob(s, d)
	if err != nil {
		return fail(err)
	}
	mf, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return fail(err)
	}
	if m.Files, err = unpack(mf); err != nil {
		return fail(err)
	}
	m.config = mf.Config
	text, err := blob(s, mf.Config)
	if err != nil {
		return fail(err)
	}
	// Not strict: another tool's config may say more than we know.
	var p packed
	if err := json.Unmarshal(text, &p); err != nil {
		return fail(fmt.Errorf("config: %w", err))
	}
	m.Name, m.Version = p.Descriptor.Name, p.Descriptor.Version
	if len(p.Descriptor.Licenses) > 0 {
		m.Licence = p.Descriptor.Licenses[0]
	}
	m.Facts = Facts{Format: p.Config.Format, Architecture: p.Config.Architecture, Precision: p.Config.Precision, Quantization: p.Config.Quantization}
	for _, f := range m.Files {
		if f.Kind == Code {
			m.Facts.Code = append(m.Facts.Code, f)
		}
		if f.Kind == Weight || f.Kind == Pickle {
			m.Facts.Weights += f.Size
		}
	}
	return m, nil
}

// blob returns the bytes of a small blob, verified.
func blob(s *content.Store, d v1.Descriptor) ([]byte, error) {
	f, err := s.Open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAll(f, d.Size)
	if err != nil {
		return nil, err
	}
	if h, n, _ := hash(bytes.NewReader(b)); h != d.Digest || n != d.Size {
		return nil, &content.MismatchError{Want: d.Digest, Got: h, WantSize: d.Size, GotSize: n}
	}
	return b, nil
}

// Verify reads every byte of the model, holds it to its digest, and looks at
// headers and configuration anew. It returns what the files say.
func Verify(ctx context.Context, s *content.Store, m Model, p Progress) (Facts, error) {
	var bad []error
	for _, f := range m.Files {
		if err := verify(ctx, s, f, p); err != nil {
			if ctx.Err() != nil {
				return Facts{}, ctx.Err()
			}
			bad = append(bad, fmt.Errorf("%s: %w", f.Name, err))
		}
	}
	if len(bad) > 0 {
		return Facts{}, errors.Join(bad...)
	}
	files, err := m.sniffed(s)
	if err != nil {
		return Facts{}, err
	}
	return inspect(files, func(f File) (*os.File, error) { return s.Open(f.Digest) })
}

// sniffed are the files with the kinds that their content has.
func (m Model) sniffed(s *content.Store) ([]File, error) {
	var out []File
	for _, f := range m.Files {
		in, err := s.Open(f.Digest)
		if err != nil {
			return nil, err
		}
		if f.Kind == Weight && f.Format == "" {
			f.Kind = Config // the name says nothing: its content decides
		}
		was := f.Kind
		err = errors.Join(f.sniff(in), in.Close())
		if err != nil {
			return nil, err
		}
		if f.Kind == Config && was == Config && m.weight(f.Name) {
			f.Kind = Weight // of a format that we don't know
		}
		out = append(out, f)
	}
	return out, nil
}

// weight says whether the manifest calls a file one.
func (m Model) weight(name string) bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == name && f.Kind == Weight })
}

func verify(ctx context.Context, s *content.Store, f File, p Progress) error {
	in, err := s.Open(f.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	h, n, err := hash(counted{ctx, in, f.Name, p})
	if err != nil {
		return err
	}
	if h != f.Digest || n != f.Size {
		return &content.MismatchError{Want: f.Digest, Got: h, WantSize: f.Size, GotSize: n}
	}
	return nil
}
