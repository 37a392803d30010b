package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// FromManifest is the installer's view of a verified release. digest is the
// sha256 of release.note, "sha256:…"; signers are the names that Trust.Open
// gave.
func FromManifest(m manifest.Release, digest string, signers []string) (Release, error) {
	r := Release{
		Name: m.Name, Version: m.Version, Sequence: m.Sequence, Digest: digest,
		Created: m.Created, Signers: signers, Bytes: m.Size(), UpgradesFrom: m.UpgradesFrom, Components: m.Components,
	}
	for _, it := range m.Items {
		mode, err := parseMode(it.Mode)
		if err != nil {
			return Release{}, fmt.Errorf("item %s: %w", it.Name, err)
		}
		r.Items = append(r.Items, Item{
			Name: it.Name, Kind: it.Kind, Ref: it.Ref, Digest: it.Descriptor.Digest, Platforms: it.Platforms,
			Licence: it.Licence, Redistributable: it.Redistributable, Path: it.Path, Mode: mode, Size: it.TotalSize,
		})
	}
	return r, nil
}

// parseMode reads octal digits such as "0755"; none means the default.
func parseMode(s string) (fs.FileMode, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 8, 9)
	if err != nil {
		return 0, fmt.Errorf("mode: got %q; wanted octal digits up to 0777", s)
	}
	return fs.FileMode(n), nil
}

// Trust returns the keys to open media with, for an installation below root,
// and where they come from. Where an installation (or the beginning of one)
// has keys already, those are used and never the media's or the caller's: key
// files that name other keys are refused. threshold is how many of files' keys
// must have signed; 0 means 1.
func Trust(root string, threshold int, files ...string) (manifest.Trust, string, error) {
	given, err := loadTrust(threshold, files)
	if err != nil {
		return manifest.Trust{}, "", err
	}
	have, own, err := Layout{Prefix: root}.ownTrust()
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(files) == 0:
		return manifest.Trust{}, "", errors.New("got no key to check the media with; wanted the publisher's verifier key; name its file with --key (it must come another way than the media)")
	case errors.Is(err, fs.ErrNotExist):
		return given, "the key files that were named", nil
	case err != nil:
		return manifest.Trust{}, "", err
	}
	for _, k := range given.Keys() {
		if !slices.Contains(have.Keys(), k) {
			return manifest.Trust{}, "", fmt.Errorf("got a key that is not among the installed ones; wanted only keys of %s; leave out --key; 'clawbox upgrade --add-key' adds one", own)
		}
	}
	return have, own, nil
}

// ownTrust is what the host trusts, and where that stands: a root where there
// is one, else keys.
func (l Layout) ownTrust() (manifest.Trust, string, error) {
	own := l.Root()
	t, err := manifest.LoadTrust(own)
	if errors.Is(err, fs.ErrNotExist) {
		own = l.Trust()
		t, err = loadOwn(own)
	}
	return t, own, err
}

// AddKeys is the host's trust with the keys of these files besides, for an
// operator who says so: nothing else widens what a host trusts.
func AddKeys(root string, files ...string) (manifest.Trust, error) {
	have, own, err := Layout{Prefix: root}.ownTrust()
	if err != nil {
		return manifest.Trust{}, err
	}
	if _, _, ok := have.Root(); ok {
		return manifest.Trust{}, fmt.Errorf("got keys to add, but %s is a root, which says whose keys count; wanted media with the publisher's next root: leave out --add-key", own)
	}
	given, err := loadTrust(0, files)
	if err != nil {
		return manifest.Trust{}, err
	}
	keys := have.Keys()
	for _, k := range given.Keys() {
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return manifest.NewTrust(have.Threshold(), keys...)
}

// thresholdLine keeps how many of the keys must sign, in a comment of the key
// file, which other readers of verifier keys skip.
const thresholdLine = "# threshold: "

func encodeTrust(t manifest.Trust) []byte {
	return fmt.Appendf(nil, "# Keys whose signatures make a release acceptable on this host.\n%s%d\n%s\n",
		thresholdLine, t.Threshold(), strings.Join(t.Keys(), "\n"))
}

// loadOwn reads the host's keys. Without a threshold line all of them must
// sign, which is the closed reading.
func loadOwn(path string) (manifest.Trust, error) {
	t, err := manifest.LoadTrust(path)
	if err != nil {
		return t, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return manifest.Trust{}, err
	}
	n := len(t.Keys())
	for l := range strings.Lines(string(b)) {
		v, ok := strings.CutPrefix(strings.TrimSpace(l), thresholdLine)
		if !ok {
			continue
		}
		if n, err = strconv.Atoi(v); err != nil {
			return manifest.Trust{}, fmt.Errorf("%s: got %q; wanted a number of signatures", path, l)
		}
	}
	return t.Need(n)
}

func loadTrust(threshold int, files []string) (manifest.Trust, error) {
	if len(files) == 0 {
		return manifest.Trust{}, nil
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil { // a missing key file is not "no installation"
			return manifest.Trust{}, fmt.Errorf("key: got no file %q; wanted the publisher's verifier key; correct --key", f)
		}
	}
	t, err := manifest.LoadTrust(files...)
	if err != nil || threshold == 0 {
		return t, err
	}
	return t.Need(threshold)
}
