package manifest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// Sign returns the signed note. A release without roles gets the signers as
// its keys, all of them needed; otherwise the signers must be among the keys
// and reach the threshold. Ed25519 is deterministic: same release and keys,
// same bytes.
func Sign(r Release, signers ...Signer) ([]byte, error) {
	if len(signers) == 0 {
		return nil, errors.New("sign: no signing key: make one with clawbox key generate and name it with --key")
	}
	if len(r.Roles.Release.Keys) == 0 {
		for _, s := range signers {
			r.Roles.Release.Keys = append(r.Roles.Release.Keys, s.Key())
		}
		r.Roles.Release.Threshold = len(signers)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	signers = slices.Clone(signers)
	keys := r.Roles.Release.Keys
	for _, s := range signers {
		if !slices.Contains(keys, s.Key()) {
			return nil, fmt.Errorf("sign: key %s is not in the release's roles", s.Name())
		}
	}
	// Signature lines stand in the order of the roles, so that there is one
	// note only for one set of signers.
	slices.SortStableFunc(signers, func(a, b Signer) int { return slices.Index(keys, a.Key()) - slices.Index(keys, b.Key()) })
	return seal(r, signers)
}

// seal signs, and opens the result as a reader will.
func seal(r Release, signers []Signer) ([]byte, error) {
	text, err := encodeRelease(r)
	if err != nil {
		return nil, err
	}
	var ns []note.Signer
	for _, s := range signers {
		ns = append(ns, s)
	}
	msg, err := note.Sign(&note.Note{Text: string(text)}, ns...)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	role := r.Roles.Release
	t, err := NewTrust(role.Threshold, role.Keys...)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if _, _, err := t.Open(msg); err != nil {
		return nil, fmt.Errorf("sign: the result does not verify: %w", err)
	}
	return msg, nil
}

// Open verifies a signed note and returns the release and the names of the
// trusted keys that signed it. It accepts exactly the bytes that Sign makes:
// every signature line, trusted here or not, must verify with a key that the
// signed text names, in the order of that list, in canonical base64.
func (t Trust) Open(msg []byte) (Release, []string, error) {
	if t.Empty() {
		return Release{}, nil, fmt.Errorf("%w: no trusted key was given", ErrUntrusted)
	}
	n, err := t.openNote(msg)
	if err != nil {
		return Release{}, nil, err
	}
	r, err := decodeRelease([]byte(n.Text))
	if err != nil {
		return Release{}, nil, err
	}
	if err := r.checkLines(msg); err != nil {
		return Release{}, nil, err
	}
	var names []string
	for _, s := range n.Sigs {
		names = append(names, s.Name)
	}
	return r, names, nil
}

// openNote checks that enough of the trusted keys signed.
func (t Trust) openNote(msg []byte) (*note.Note, error) {
	if len(msg) > MaxNote {
		return nil, &TamperedError{What: "release.note", Detail: fmt.Sprintf("more than %d bytes", MaxNote)}
	}
	n, err := note.Open(msg, note.VerifierList(t.verifiers...))
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unverified):
		return nil, fmt.Errorf("%w: signed by %s; trusted: %s: get the publisher's key by another way than this media", ErrUntrusted, lines(unverified.Note), t.names())
	case err != nil:
		return nil, &TamperedError{What: "release.note", Detail: err.Error() + ": copy the media again"}
	case len(n.Sigs) < t.threshold:
		return nil, fmt.Errorf("%w: %d of the trusted keys signed, want %d of: %s", ErrUntrusted, len(n.Sigs), t.threshold, t.names())
	}
	return n, nil
}

func lines(n *note.Note) string {
	s := ""
	for _, u := range n.UnverifiedSigs {
		s += fmt.Sprintf("%s+%08x ", u.Name, u.Hash)
	}
	return s + "(not checked)"
}

// checkLines verifies all signature lines with the keys in the release, which
// is trusted by now, and compares the note with its canonical form.
func (r Release) checkLines(msg []byte) error {
	role := r.Roles.Release
	t, err := NewTrust(role.Threshold, role.Keys...)
	if err != nil {
		return err
	}
	n, err := t.openNote(msg)
	if err != nil {
		return err
	}
	if len(n.UnverifiedSigs) > 0 {
		return &TamperedError{What: "release.note", Detail: fmt.Sprintf("a signature by %s, whom the release doesn't name", lines(&note.Note{UnverifiedSigs: n.UnverifiedSigs}))}
	}
	want := append([]byte(n.Text), '\n')
	for _, v := range t.verifiers {
		for _, s := range n.Sigs {
			if s.Name == v.Name() && s.Hash == v.KeyHash() {
				want = append(want, line(s)...)
			}
		}
	}
	if !bytes.Equal(msg, want) {
		return same("release.note", msg, want)
	}
	return nil
}

// line writes a signature line; it drops what Base64 may hold in its padding.
func line(s note.Signature) string {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) < 4 || binary.BigEndian.Uint32(raw) != s.Hash {
		return "" // note.Open has decoded it: can't be; and "" is refused
	}
	return fmt.Sprintf("— %s %s\n", s.Name, base64.StdEncoding.EncodeToString(raw))
}

// Signature says who claims to have signed.
type Signature struct {
	Name string `json:"name"`
	Hash string `json:"hash"` // the key's id, 8 hex digits
}

// Unverified decodes a note without checking any signature: for display only.
// Nothing that it returns may be acted on.
func Unverified(msg []byte) (Release, []Signature, error) {
	if len(msg) > MaxNote {
		return Release{}, nil, fmt.Errorf("release.note: more than %d bytes", MaxNote)
	}
	_, err := note.Open(msg, note.VerifierList())
	var u *note.UnverifiedNoteError
	if !errors.As(err, &u) {
		return Release{}, nil, &TamperedError{What: "release.note", Detail: err.Error()}
	}
	r, err := decodeRelease([]byte(u.Note.Text))
	if err != nil {
		return Release{}, nil, err
	}
	var sigs []Signature
	for _, s := range u.Note.UnverifiedSigs {
		sigs = append(sigs, Signature{Name: s.Name, Hash: fmt.Sprintf("%08x", s.Hash)})
	}
	return r, sigs, nil
}
