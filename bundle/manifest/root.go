package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/clawbox/clawbox/internal/durable"
)

const (
	// RootFormat heads a root.
	RootFormat = "clawbox.io/root/v1"
	// MaxRoot bounds one root's note, in bytes, MaxRoots the roots of a chain.
	MaxRoot  = 16 << 10
	MaxRoots = 64
)

// Root says whose signatures count: who may sign the next root, and who may
// sign releases. It is the root role of TUF without an expiry.
type Root struct {
	Format  string `json:"format"`
	Name    string `json:"name"`    // the publisher's; the same in all of a chain
	Version int64  `json:"version"` // from 1, each one more than the one before
	// Previous is the sha256 of the text of the root before this one, so that a
	// chain can't be forked unseen. Version 1 has none.
	Previous *Sum      `json:"previous,omitempty"`
	Roles    RootRoles `json:"roles"`
}

// RootRoles are the roles that a root fills.
type RootRoles struct {
	Root    Role `json:"root"`
	Release Role `json:"release"`
}

// Next returns the root that follows r, with r's roles, to be changed and then
// signed by the threshold of r's root role and by its own.
func (r Root) Next() (Root, error) {
	text, err := encodeRoot(r)
	if err != nil {
		return Root{}, err
	}
	sum := Sum(sha256.Sum256(text))
	n := r
	n.Version, n.Previous = r.Version+1, &sum
	n.Roles.Root.Keys, n.Roles.Release.Keys = slices.Clone(r.Roles.Root.Keys), slices.Clone(r.Roles.Release.Keys)
	return n, nil
}

func (r Root) check() error {
	if r.Format != RootFormat {
		return fmt.Errorf("root: format %.80q, want %s: made by another version of clawbox", r.Format, RootFormat)
	}
	if err := CheckName(r.Name); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if r.Version < 1 || r.Version > MaxRoots || (r.Version > 1) != (r.Previous != nil) {
		return fmt.Errorf("root: version %d: want 1 to %d, and a previous one from 2 on", r.Version, MaxRoots)
	}
	for name, role := range map[string]Role{"root": r.Roles.Root, "release": r.Roles.Release} {
		if err := role.check(); err != nil {
			return fmt.Errorf("root: role %s: %w", name, err)
		}
	}
	return nil
}

// encodeRoot is the canonical form, as that of a release.
func encodeRoot(r Root) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("encode root: %w", err)
	}
	return b.Bytes(), nil
}

func decodeRoot(text []byte) (Root, error) {
	var r Root
	if err := decode(text, &r); err != nil {
		return Root{}, fmt.Errorf("root: %w", err)
	}
	canon, err := encodeRoot(r)
	if err != nil {
		return Root{}, err
	}
	if err := same("root", text, canon); err != nil {
		return Root{}, err
	}
	return r, r.check()
}

// SignRoot returns the note of r with these signatures. Fewer than a reader
// will ask for are no error, as the keys may lie in different places: see Cosign.
func SignRoot(r Root, signers ...Signer) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if len(signers) == 0 {
		return nil, errors.New("sign root: no signing key: name one with --sign")
	}
	text, err := encodeRoot(r)
	if err != nil {
		return nil, err
	}
	return noteOf(string(text), nil, signers)
}

// Cosign adds signatures to the note of a root. Those that it has are kept,
// unless a signer signs again.
func Cosign(msg []byte, signers ...Signer) ([]byte, error) {
	_, n, err := unverifiedRoot(msg)
	if err != nil {
		return nil, err
	}
	return noteOf(n.Text, n.UnverifiedSigs, signers)
}

// noteOf writes a note whose signature lines are sorted.
func noteOf(text string, sigs []note.Signature, signers []Signer) ([]byte, error) {
	lines := map[string]string{}
	for _, s := range sigs {
		lines[fmt.Sprintf("%s+%08x", s.Name, s.Hash)] = line(s)
	}
	for _, s := range signers {
		msg, err := note.Sign(&note.Note{Text: text}, s)
		if err != nil {
			return nil, fmt.Errorf("sign root: %w", err)
		}
		lines[fmt.Sprintf("%s+%08x", s.Name(), s.KeyHash())] = string(msg[len(text)+1:])
	}
	out := []byte(text + "\n")
	for _, k := range sortedKeys(lines) {
		out = append(out, lines[k]...)
	}
	if len(out) > MaxRoot {
		return nil, fmt.Errorf("root of %d bytes, want at most %d: name fewer keys", len(out), MaxRoot)
	}
	return out, nil
}

func sortedKeys(m map[string]string) (ks []string) {
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// unverifiedRoot decodes a root's note and believes nothing in it.
func unverifiedRoot(msg []byte) (Root, *note.Note, error) {
	if len(msg) > MaxRoot {
		return Root{}, nil, &TamperedError{What: "root", Detail: fmt.Sprintf("more than %d bytes", MaxRoot)}
	}
	_, err := note.Open(msg, note.VerifierList())
	var u *note.UnverifiedNoteError
	if !errors.As(err, &u) {
		return Root{}, nil, &TamperedError{What: "root", Detail: err.Error()}
	}
	r, err := decodeRoot([]byte(u.Note.Text))
	if err != nil {
		return Root{}, nil, err
	}
	want, err := noteOf(u.Note.Text, u.Note.UnverifiedSigs, nil)
	if err != nil {
		return Root{}, nil, err
	}
	return r, u.Note, same("root", msg, want)
}

// UnverifiedRoot decodes a root's note for display: no signature is checked.
func UnverifiedRoot(msg []byte) (Root, []Signature, error) {
	r, n, err := unverifiedRoot(msg)
	if err != nil {
		return Root{}, nil, err
	}
	var sigs []Signature
	for _, s := range n.UnverifiedSigs {
		sigs = append(sigs, Signature{Name: s.Name, Hash: fmt.Sprintf("%08x", s.Hash)})
	}
	return r, sigs, nil
}

// signed says whether the role's threshold of keys signed msg, and fails on a
// line by one of its keys that does not verify.
func (role Role) signed(msg []byte) (known []note.Signature, err error) {
	t, err := NewTrust(role.Threshold, role.Keys...)
	if err != nil {
		return nil, err
	}
	n, err := t.openNote(msg)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return n.Sigs, nil
}

// TrustRoot pins a root: one that the host got by another way than the media,
// or has accepted before. It must be signed by its own root role.
func TrustRoot(msg []byte) (Trust, error) {
	r, _, err := unverifiedRoot(msg)
	if err != nil {
		return Trust{}, err
	}
	if _, err := r.Roles.Root.signed(msg); err != nil {
		return Trust{}, fmt.Errorf("root version %d is not signed by its own root role yet: %w", r.Version, err)
	}
	t, err := NewTrust(r.Roles.Release.Threshold, r.Roles.Release.Keys...)
	t.root, t.note = &r, slices.Clone(msg)
	return t, err
}

// Root returns the root that t follows, and its note; ok is false when t is a
// set of keys.
func (t Trust) Root() (r Root, msg []byte, ok bool) {
	if t.root == nil {
		return Root{}, nil, false
	}
	return *t.root, slices.Clone(t.note), true
}

// Follow takes the roots that come after t's, one by one, and returns the trust
// in the last one. read returns the note of a version, fs.ErrNotExist when there
// is none. Each root must be signed by the threshold of the one before and by
// its own, and name the one before by its sum. A set of keys follows nothing.
func (t Trust) Follow(read func(version int64) ([]byte, error)) (Trust, error) {
	if t.root == nil {
		return t, nil
	}
	own, err := read(t.root.Version)
	switch {
	case errors.Is(err, fs.ErrNotExist): // an older or a shorter chain
	case err != nil:
		return Trust{}, err
	case text(own) != text(t.note):
		return Trust{}, fmt.Errorf("%w: there is another root of version %d than the one that this host accepted: the publisher's root keys may be in other hands; ask the publisher",
			ErrUntrusted, t.root.Version)
	}
	for {
		msg, err := read(t.root.Version + 1)
		if errors.Is(err, fs.ErrNotExist) {
			return t, nil
		} else if err != nil {
			return Trust{}, err
		}
		if t, err = t.next(msg); err != nil {
			return Trust{}, err
		}
	}
}

// text is what a note's signatures are over.
func text(msg []byte) string {
	if i := strings.LastIndex(string(msg), "\n\n"); i >= 0 {
		return string(msg[:i+1])
	}
	return string(msg)
}

// next accepts the root that follows t's.
func (t Trust) next(msg []byte) (Trust, error) {
	old := *t.root
	at := func(err error) error { return fmt.Errorf("root version %d: %w", old.Version+1, err) }
	if len(msg) > MaxRoot {
		return Trust{}, at(&TamperedError{What: "root", Detail: fmt.Sprintf("more than %d bytes", MaxRoot)})
	}
	before, err := old.Roles.Root.signed(msg) // first of all: nothing unsigned is decoded
	if err != nil {
		return Trust{}, at(err)
	}
	n, err := TrustRoot(msg)
	if err != nil {
		return Trust{}, at(err)
	}
	want, err := old.Next()
	if err != nil {
		return Trust{}, at(err)
	}
	switch r := n.root; {
	case r.Version != want.Version || r.Name != want.Name:
		return Trust{}, at(fmt.Errorf("%w: it is version %d of %s, want version %d of %s", ErrTampered, r.Version, r.Name, want.Version, want.Name))
	case *r.Previous != *want.Previous:
		return Trust{}, at(fmt.Errorf("%w: it follows another root of version %d than the one that this host accepted", ErrUntrusted, old.Version))
	}
	own, err := n.root.Roles.Root.signed(msg)
	if err != nil {
		return Trust{}, at(err)
	}
	if err := onlyBy(msg, before, own); err != nil {
		return Trust{}, at(err)
	}
	return n, nil
}

// onlyBy refuses a signature line that none of the known ones is.
func onlyBy(msg []byte, known ...[]note.Signature) error {
	_, n, err := unverifiedRoot(msg)
	if err != nil {
		return err
	}
	for _, s := range n.UnverifiedSigs {
		raw, _ := base64.StdEncoding.DecodeString(s.Base64) // note.Open decoded it
		if !slices.ContainsFunc(slices.Concat(known...), func(k note.Signature) bool {
			b, _ := base64.StdEncoding.DecodeString(k.Base64)
			return k.Name == s.Name && k.Hash == s.Hash && bytes.Equal(b, raw)
		}) {
			return &TamperedError{What: "root", Detail: fmt.Sprintf("a signature by %s+%08x, whom neither root names", s.Name, s.Hash)}
		}
	}
	return nil
}

// CheckRoot holds the note of a root on the media against the release, which
// names every root that it carries.
func (r Release) CheckRoot(version int64, msg []byte) error {
	if version < 1 || version > int64(len(r.Roots)) {
		return &TamperedError{What: "root/" + RootName(version), Detail: "the release doesn't name it"}
	}
	f := r.Roots[version-1]
	if got := Sum(sha256.Sum256(msg)); got != f.SHA256 || int64(len(msg)) != f.Size {
		return &TamperedError{What: "root/" + RootName(version), Detail: fmt.Sprintf("got sha256 %s, want %s", got, f.SHA256)}
	}
	return nil
}

// KeepRoot writes the root that t follows to path, durably, so that the host
// never trusts an older one again. A file that holds a newer root stays as it
// is; a trust in keys writes nothing.
func KeepRoot(path string, t Trust) error {
	if t.root == nil {
		return nil
	}
	old, err := LoadTrust(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("keep root: %w", err)
	case old.root != nil && old.root.Version >= t.root.Version:
		return nil
	}
	if err := durable.WriteFile(path, t.note, 0o644); err != nil {
		return fmt.Errorf("keep root: %w", err)
	}
	return nil
}
