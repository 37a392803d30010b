package manifest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// fixed is a signer that is the same in every process: the fuzzing engine's
// inputs come from another process than the one that runs them.
func fixed(t testing.TB, name string, seed byte) Signer {
	t.Helper()
	raw := bytes.Repeat([]byte{seed}, ed25519.SeedSize)
	vkey, err := note.NewEd25519VerifierKey(name, ed25519.NewKeyFromSeed(raw).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSigner("PRIVATE+KEY+" + vkey[:len(name)+9] + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, raw...)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signText(t testing.TB, text string, s Signer) []byte {
	msg, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		return []byte(text)
	}
	return msg
}

// FuzzNote: whatever lies in release.note, nothing is taken but what was
// signed, and the decoder for display survives it. The same text, when the key's
// owner signs it, is taken in canonical form only.
func FuzzNote(f *testing.F) {
	s := fixed(f, "acme", 1)
	tr, err := NewTrust(1, s.Key())
	if err != nil {
		f.Fatal(err)
	}
	r, _ := sample(f)
	good, err := Sign(r, s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.Replace(good, []byte(`"sequence": 7`), []byte(`"sequence": 8`), 1))
	f.Add(bytes.Replace(good, []byte(`"chunkSize"`), []byte(`"base": {"name":"a","version":"1.0.0","sequence":1,"note":""}, "encryption": "age", "chunkSize"`), 1))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, _, err := tr.Open(msg); err == nil && !bytes.Equal(msg, good) {
			t.Error("a note was taken that nobody signed")
		}
		Unverified(msg)
		signed := signText(t, text(msg), s)
		got, _, err := tr.Open(signed)
		if err != nil {
			return
		}
		if again, err := Sign(got, s); err != nil || !bytes.Equal(again, signed) {
			t.Errorf("not the one way to write it: %v", err)
		}
	})
}

// FuzzRoot: no root follows the pinned one but by the keys that it names, and a
// root is taken in canonical form only.
func FuzzRoot(f *testing.F) {
	a, b := fixed(f, "root", 1), fixed(f, "release", 2)
	role := func(s Signer) Role { return Role{Keys: []string{s.Key()}, Threshold: 1} }
	first := Root{Format: RootFormat, Name: "acme", Version: 1, Roles: RootRoles{Root: role(a), Release: role(b)}}
	next, err := first.Next()
	if err != nil {
		f.Fatal(err)
	}
	var notes [2][]byte
	for i, r := range []Root{first, next} {
		if notes[i], err = SignRoot(r, a); err != nil {
			f.Fatal(err)
		}
		f.Add(notes[i])
	}
	f.Add(bytes.Replace(notes[1], []byte(`"version": 2`), []byte(`"version": 3`), 1))
	f.Add([]byte(strings.Replace(string(notes[1]), a.Key(), b.Key(), 1)))
	pinned, err := TrustRoot(notes[0])
	if err != nil {
		f.Fatal(err)
	}
	follow := func(msg []byte) (Trust, error) {
		return pinned.Follow(func(v int64) ([]byte, error) {
			if v == 2 {
				return msg, nil
			}
			return nil, fs.ErrNotExist
		})
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, err := follow(msg); err == nil && !bytes.Equal(msg, notes[1]) {
			t.Error("a root was followed that nobody signed")
		}
		UnverifiedRoot(msg)
		signed := signText(t, text(msg), a)
		for _, open := range []func([]byte) (Trust, error){TrustRoot, follow} {
			tr, err := open(signed)
			if err != nil {
				continue
			}
			r, _, _ := tr.Root()
			if again, err := encodeRoot(r); err != nil || string(again) != text(signed) {
				t.Errorf("not the one way to write it: %v", err)
			}
		}
	})
}

// FuzzKeys: a key file and a secret key survive anything, and no error shows
// what is in them.
func FuzzKeys(f *testing.F) {
	s := fixed(f, "acme", 1)
	f.Add(s.Key())
	f.Add("PRIVATE+KEY+acme+00000000+AQ==")
	f.Fuzz(func(t *testing.T, key string) {
		_, err := ParseSigner(key)
		_, err2 := NewTrust(1, key)
		if err := errors.Join(err, err2); err != nil && len(key) > 40 && strings.Contains(err.Error(), key) {
			t.Errorf("the error shows the key: %v", err)
		}
	})
}
