package manifest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

const (
	maxKeys    = 16
	maxKeyFile = 64 << 10 // bytes
)

// Trust is the set of keys of which Threshold must have signed a release: a
// fixed one, or the one that a Root gives. The zero Trust trusts nothing.
type Trust struct {
	keys      []string
	verifiers []note.Verifier
	threshold int

	root *Root // nil: the keys are fixed
	note []byte
}

// NewTrust makes a Trust of verifier keys ("name+hash+base64"), each of them a
// different key.
func NewTrust(threshold int, vkeys ...string) (Trust, error) {
	t := Trust{threshold: threshold}
	seen := map[string]string{}
	for i, k := range vkeys {
		v, err := note.NewVerifier(k)
		if err != nil {
			// Not shown: it may be a secret key in the wrong place.
			return Trust{}, fmt.Errorf("key %d of %d is not a verifier key: want a line such as name+hash+base64, from clawbox key generate", i+1, len(vkeys))
		}
		// Strict: one key has one spelling. Two names for it would count twice
		// towards the threshold.
		raw, err := base64.StdEncoding.Strict().DecodeString(keyData(k))
		if err != nil {
			return Trust{}, fmt.Errorf("key %s: %w", v.Name(), err)
		}
		if other, ok := seen[string(raw)]; ok {
			return Trust{}, fmt.Errorf("keys %s and %s are the same key: it would count twice", other, v.Name())
		}
		seen[string(raw)] = v.Name()
		t.keys, t.verifiers = append(t.keys, k), append(t.verifiers, v)
	}
	return t.Need(threshold)
}

// keyData returns the third field of a verifier key; base64 may hold '+'.
func keyData(vkey string) string {
	f := strings.SplitN(vkey, "+", 3)
	return f[len(f)-1]
}

// Need returns t with another threshold, from 1 to the number of keys.
func (t Trust) Need(n int) (Trust, error) {
	if t.root != nil && n != t.threshold {
		return Trust{}, fmt.Errorf("trust: %d signatures, and root version %d asks for %d: leave the number out, the root gives it", n, t.root.Version, t.threshold)
	}
	if n < 1 || n > len(t.keys) {
		return Trust{}, fmt.Errorf("trust: %d signatures of %d keys: want at least one key and a threshold between 1 and the number of keys", n, len(t.keys))
	}
	t.threshold = n
	return t, nil
}

// Empty says that t trusts nothing.
func (t Trust) Empty() bool { return len(t.keys) == 0 }

// Keys returns the verifier keys.
func (t Trust) Keys() []string { return slices.Clone(t.keys) }

// Threshold returns how many of the keys must have signed.
func (t Trust) Threshold() int { return t.threshold }

func (t Trust) names() string {
	var s []string
	for _, v := range t.verifiers {
		s = append(s, fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()))
	}
	return strings.Join(s, ", ")
}

// LoadTrust reads verifier keys, one per line; empty lines and lines that
// begin with # are skipped. One signature suffices; see Need. Or it reads one
// root (see TrustRoot). A file that everyone may write is refused: it would let
// everyone choose the keys.
func LoadTrust(paths ...string) (Trust, error) {
	var keys []string
	for _, p := range paths {
		b, err := readKey(p, 0o002)
		if err != nil {
			return Trust{}, err
		}
		if bytes.HasPrefix(b, []byte("{")) {
			if len(paths) > 1 {
				return Trust{}, fmt.Errorf("%s is a root, and there are %d files: want one root, or keys only", p, len(paths))
			}
			t, err := TrustRoot(b)
			if err != nil {
				return Trust{}, fmt.Errorf("%s: %w", p, err)
			}
			return t, nil
		}
		ls := keyLines(b)
		if len(ls) == 0 {
			return Trust{}, fmt.Errorf("%s: no key in it: want a line such as name+hash+base64", p)
		}
		keys = append(keys, ls...)
	}
	if len(keys) == 0 {
		return Trust{}, errors.New("trust: no key file given: name one with --key")
	}
	t, err := NewTrust(1, keys...)
	if err != nil {
		return Trust{}, fmt.Errorf("%s: %w", strings.Join(paths, ", "), err)
	}
	return t, nil
}

// keyLines are the lines of a key file that are neither empty nor comments.
func keyLines(b []byte) (out []string) {
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			out = append(out, l)
		}
	}
	return out
}

// readKey reads a small file, and refuses one with any of the forbidden
// permission bits. The check is on the open file, so that it can't be
// exchanged in between.
func readKey(path string, forbidden os.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("key %s is a %s, want a regular file", path, fi.Mode().Type())
	}
	if m := fi.Mode().Perm(); m&forbidden != 0 {
		return nil, fmt.Errorf("key %s has mode %04o, want %04o: run chmod %04o %s, and make a new key if others could have used it",
			path, m, m&^forbidden, m&^forbidden, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(b) > maxKeyFile {
		err = fmt.Errorf("larger than %d bytes: not a key file", maxKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return b, nil
}

// Signer is a private key and its public half.
type Signer struct {
	note.Signer
	vkey string
}

// Key returns the verifier key, which is not secret.
func (s Signer) Key() string { return s.vkey }

// GenerateKey makes an Ed25519 key pair: skey is the secret line for a file of
// mode 0600, vkey the line for everybody who is to trust it.
func GenerateKey(name string) (skey, vkey string, err error) {
	if err := CheckName(name); err != nil {
		return "", "", err
	}
	return note.GenerateKey(rand.Reader, name)
}

// ParseSigner reads a secret key line. Its errors never hold the key.
func ParseSigner(skey string) (Signer, error) {
	skey = strings.TrimSpace(skey)
	s, err := note.NewSigner(skey)
	if err != nil {
		return Signer{}, errors.New("not a signing key: want one line PRIVATE+KEY+name+hash+base64, from clawbox key generate")
	}
	f := strings.SplitN(skey, "+", 5) // PRIVATE KEY name hash data; NewSigner has checked the form
	raw, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return Signer{}, errors.New("not an Ed25519 signing key")
	}
	pub := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(s.Name(), pub)
	if err != nil {
		return Signer{}, fmt.Errorf("signing key %s: %w", s.Name(), err)
	}
	return Signer{Signer: s, vkey: vkey}, nil
}

// LoadSigner reads a secret key file. One that group or others may read or
// write is refused.
func LoadSigner(path string) (Signer, error) {
	b, err := readKey(path, 0o077)
	if err != nil {
		if pub, e := readKey(path, 0); e == nil && isPublic(pub) { // its mode is not what is wrong
			err = publicError(path)
		}
		return Signer{}, err
	}
	s, err := ParseSigner(string(b))
	switch {
	case err != nil && isPublic(b):
		return Signer{}, publicError(path)
	case err != nil:
		return Signer{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// isPublic says whether a key file holds verifier keys.
func isPublic(b []byte) bool {
	ls := keyLines(b)
	if len(ls) == 0 {
		return false
	}
	_, err := note.NewVerifier(ls[0])
	return err == nil
}

func publicError(path string) error {
	return fmt.Errorf("%s is a public key: want the signing key that was made with it, one line PRIVATE+KEY+name+hash+base64, from clawbox key generate", path)
}
