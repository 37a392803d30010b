package installer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxPolicy bounds a policy's size in bytes before it is read into memory.
const maxPolicy = 1 << 20

// layers reads an item's manifest.
func layers(s *content.Store, it Item) ([]v1.Descriptor, error) {
	f, err := s.Open(it.Digest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", it.Name, err)
	}
	defer f.Close()
	m, err := v1.ParseManifest(io.LimitReader(f, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", it.Name, err)
	}
	return m.Layers, nil
}

// layer finds the one blob that a file or policy item is.
func layer(s *content.Store, it Item) (v1.Descriptor, error) {
	ls, err := layers(s, it)
	if err == nil && len(ls) != 1 {
		err = fmt.Errorf("%s: got an artifact with %d layers; wanted one file", it.Name, len(ls))
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	return ls[0], nil
}

// fileTitle is the annotation that names a package's file.
const fileTitle = "org.opencontainers.image.title"

// files are an item's blobs by their paths in the slot: one, or those of the
// folder that packages are.
func files(s *content.Store, it Item) (map[string]v1.Descriptor, error) {
	if it.Kind != "debs" {
		d, err := layer(s, it)
		return map[string]v1.Descriptor{it.place(): d}, err
	}
	ls, err := layers(s, it)
	if err != nil {
		return nil, err
	}
	out := map[string]v1.Descriptor{}
	for _, d := range ls {
		name := d.Annotations[fileTitle]
		if err := manifest.CheckPath(name); err != nil || path.Base(name) != name {
			return nil, fmt.Errorf("%s: got a package named %q; wanted a plain file name; rebuild the bundle", it.Name, name)
		}
		out[path.Join(it.place(), name)] = d
	}
	return out, nil
}

// policies reads every policy of the release the way the appliance will.
func (r *run) policies(context.Context) (string, error) {
	s, err := r.open()
	if err != nil {
		return "", err
	}
	for _, it := range r.Release.kind("policy") {
		d, err := layer(s, it)
		if err != nil {
			return "", err
		}
		if d.Size > maxPolicy {
			return "", fmt.Errorf("policy %s: got %d bytes; wanted at most %d", it.Name, d.Size, maxPolicy)
		}
		b, err := os.ReadFile(s.Path(d.Digest))
		if err != nil {
			return "", err
		}
		if _, err := policies.Parse(filepath.Base(it.place()), b); err != nil {
			return "", fmt.Errorf("the release's policy %s: %w; the bundle has to be made again", it.Name, err)
		}
	}
	return "", nil
}

// slot makes the release's folder hold exactly the release's files. It is
// not active while it is first filled; later, each file is replaced by a
// rename, so a running program keeps its own.
func (r *run) slot(ctx context.Context) (string, error) {
	s, err := r.open()
	if err != nil {
		return "", err
	}
	root := r.l.Slot(r.Release.Version, r.Release.Sequence)
	if _, err := ensureDir(root, 0o755); err != nil {
		return "", err
	}
	var did []string
	keep := map[string]bool{root: true}
	for _, it := range r.Release.slotItems() {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		made, err := fillItem(s, it, root, keep)
		if err != nil {
			return "", err
		}
		did = append(did, made...)
	}
	gone, err := strangers(root, keep)
	if len(gone) > 0 && err == nil {
		did = append(did, "removed "+list(gone))
	}
	return strings.Join(did, ", "), err
}

// fillItem makes an item's files, and returns those that were not there.
func fillItem(s *content.Store, it Item, root string, keep map[string]bool) (did []string, err error) {
	all, err := files(s, it)
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Sorted(maps.Keys(all)) {
		dst := filepath.Join(root, filepath.FromSlash(p))
		if err := parents(root, dst, keep); err != nil {
			return nil, err
		}
		what, err := ensureBlob(s, all[p], dst, it.perm())
		if err != nil {
			return nil, err
		}
		if what != "" {
			did = append(did, p)
		}
	}
	return did, nil
}

// parents makes the folders between root and dst, and marks them kept.
func parents(root, dst string, keep map[string]bool) error {
	keep[dst] = true
	var up []string
	for d := filepath.Dir(dst); d != root; d = filepath.Dir(d) {
		up = append(up, d)
	}
	for _, d := range slices.Backward(up) {
		keep[d] = true
		if _, err := ensureDir(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// ensureBlob makes dst the file d, with its mode. The content is hashed whether
// it is there already or copied now.
func ensureBlob(s *content.Store, d v1.Descriptor, dst string, mode fs.FileMode) (string, error) {
	st, err := os.Lstat(dst)
	if err == nil && st.Mode().IsRegular() && st.Mode().Perm() == mode && st.Size() == d.Size {
		if sum, err := sumOf(dst); err == nil && sum == d.Digest.Hex {
			return "", nil
		}
	}
	if err == nil && st.IsDir() {
		return "", fmt.Errorf("%s: got a folder; wanted a file; move it away", dst)
	}
	return dst, copyBlob(s, d, dst, mode)
}

// copyBlob copies instead of linking: the store's blobs are 0444 for everyone,
// and a mode belongs to the file, not to its name, so making a linked program
// executable would change the blob.
func copyBlob(s *content.Store, d v1.Descriptor, dst string, mode fs.FileMode) error {
	src, err := s.Open(d.Digest)
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".tmp-*")
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), src)
	if sum := hex.EncodeToString(h.Sum(nil)); err == nil && sum != d.Digest.Hex {
		err = fmt.Errorf("the store's %s has rotted: got sha256:%s; run the installer again with the media to replace it", d.Digest, sum)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = durable.Rename(f.Name(), dst)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", dst, err), os.Remove(f.Name()))
	}
	return nil
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// strangers removes what does not belong below root: leftovers of a killed
// run, or files that somebody added to a slot, from where they could be run.
func strangers(root string, keep map[string]bool) ([]string, error) {
	var gone []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || keep[p] {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		gone = append(gone, rel)
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		if err := durable.SyncDir(filepath.Dir(p)); err != nil {
			return err
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	return gone, err
}

// scrub hashes every blob and removes those that are no longer what their
// name says, so that Load brings them again.
func scrub(ctx context.Context, s *content.Store) ([]string, error) {
	var did []string
	err := eachBlob(s, func(p string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		sum, err := sumOf(p)
		if err != nil || sum == filepath.Base(p) {
			return err
		}
		did = append(did, fmt.Sprintf("removed the rotten blob %.12s…", filepath.Base(p)))
		return durable.Remove(p)
	})
	return did, err
}

// blobs counts what the store has.
func blobs(s *content.Store) (n int, err error) {
	return n, eachBlob(s, func(string) error { n++; return nil })
}

func eachBlob(s *content.Store, f func(path string) error) error {
	es, err := os.ReadDir(filepath.Join(s.Dir(), "blobs", "sha256"))
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, e := range es {
		if err := f(filepath.Join(s.Dir(), "blobs", "sha256", e.Name())); err != nil {
			return err
		}
	}
	return nil
}
