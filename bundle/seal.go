package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

// The sizes of an age file's payload: a 16-byte nonce, then chunks of 64 KiB
// with a 16-byte tag each (C2SP age, "Payload").
const (
	sealedChunk = 64 << 10
	sealedTag   = 16
)

const maxKeyFile = 64 << 10 // bytes

// ParseRecipients reads whom to encrypt to: a public key as it is (age1…,
// ssh-ed25519 …, ssh-rsa …), or a file with one per line.
func ParseRecipients(args ...string) (out []age.Recipient, err error) {
	for _, a := range args {
		text := a
		if !strings.HasPrefix(a, "age1") && !strings.HasPrefix(a, "ssh-") {
			b, err := readSmall(a, maxKeyFile)
			if err != nil {
				return nil, fmt.Errorf("recipient: %w: want age1…, an ssh public key, or a file with them", err)
			}
			text = string(b)
		}
		for l := range strings.Lines(text) {
			if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
				continue
			}
			r, err := parseRecipient(l)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
	}
	if len(args) > 0 && len(out) == 0 {
		return nil, errors.New("recipient: no key in what was named: want age1…, an ssh public key, or a file with them")
	}
	return out, nil
}

func parseRecipient(l string) (age.Recipient, error) {
	if strings.HasPrefix(l, "AGE-SECRET-KEY-") {
		return nil, errors.New("recipient: this is an identity, which is secret: want its public half, age1…, from age-keygen -y")
	}
	if strings.HasPrefix(l, "ssh-") {
		r, err := agessh.ParseRecipient(l)
		if err != nil {
			return nil, fmt.Errorf("recipient %.40q: %w", l, err)
		}
		return r, nil
	}
	rs, err := age.ParseRecipients(strings.NewReader(l))
	if err != nil || len(rs) != 1 {
		return nil, fmt.Errorf("recipient %.40q: want age1… or an ssh public key: %w", l, err)
	}
	return rs[0], nil
}

// LoadIdentities reads the secret keys to decrypt with: files of age identities
// or unencrypted ssh private keys. One that others may read is refused.
func LoadIdentities(paths ...string) (out []age.Identity, err error) {
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		if m := fi.Mode().Perm(); m&0o077 != 0 {
			return nil, fmt.Errorf("identity %s has mode %04o, want %04o: run chmod %04o %s", p, m, m&^0o077, m&^0o077, p)
		}
		b, err := readSmall(p, maxKeyFile)
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		ids, err := parseIdentities(b)
		if err != nil {
			return nil, fmt.Errorf("identity %s: %w", p, err)
		}
		out = append(out, ids...)
	}
	return out, nil
}

func parseIdentities(b []byte) ([]age.Identity, error) {
	if bytes.HasPrefix(b, []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(b)
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, errors.New("no age identity (AGE-SECRET-KEY-1…) and no ssh private key in it")
	}
	return ids, nil
}

// seal encrypts a small file.
func seal(b []byte, rs []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, rs...)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out.Bytes(), nil
}

// payloadPer returns how much payload goes into a part of PartSize bytes.
func (b *build) payloadPer() (int64, error) {
	if len(b.recipients) == 0 {
		return b.PartSize, nil
	}
	empty, err := seal(nil, b.recipients)
	if err != nil {
		return 0, err
	}
	// A header's length may differ by some bytes from file to file.
	head := int64(len(empty)) + 4<<10
	per := (b.PartSize - head) / (sealedChunk + sealedTag) * sealedChunk
	if per < sealedChunk {
		return 0, fmt.Errorf("bundle: parts of %d bytes leave no room beside %d bytes for %d recipients: make them larger", b.PartSize, head, len(b.recipients))
	}
	return per, nil
}

// sealedSize bounds what n bytes become on the media.
func (b *build) sealedSize(n int64) int64 {
	if len(b.recipients) == 0 {
		return n
	}
	return n + (n/sealedChunk+2)*sealedTag + 16<<10
}
