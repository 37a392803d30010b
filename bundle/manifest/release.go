// Package manifest is what a bundle says about itself: the signed release, the
// blob index, and the keys that make them trusted.
//
// A bundle carries two small files beside its parts. release.note is a Release
// as indented JSON, in a C2SP signed note; index.json is an Index, named by
// the release with size and sha256. Bytes become trusted in one function each:
//
//	trust, err := manifest.LoadTrust("/etc/clawbox/keys/acme.pub")
//	rel, signers, err := trust.Open(note)       // the only way to a trusted Release
//	idx, err := rel.OpenIndex(indexBytes)       // the only way to its Index
//	err = manifest.CheckSequence(installed, rel.Sequence)
//
// Both decoders take exactly the bytes that the encoder makes: after decoding,
// the value is encoded again and compared, so that an unknown field, a
// duplicate key, another spelling of a number or one added space is refused,
// and so is any other signature line than the ones that the release expects.
//
// A host trusts either a set of release keys, or a Root: a signed statement of
// who may sign roots and who may sign releases. Root N+1 counts when it is signed
// by the threshold of root N and by its own, so that keys are added, replaced
// and thrown away without anybody visiting the hosts:
//
//	trust, err := manifest.LoadTrust("/etc/clawbox/root.note") // the pinned root
//	trust, err = trust.Follow(readRoot)                        // as far as the media's chain leads
//	err = manifest.KeepRoot("/etc/clawbox/root.note", trust)   // never back
//
// Limits: there is no expiry, because an offline host has no clock to trust;
// docs/bundle-format.md holds this against TUF, attack by attack.
//
// Sources: signed note, c2sp.org/signed-note; roles, TUF specification 1.0.33.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/licence"
)

const (
	// ReleaseFormat and IndexFormat head the two files.
	ReleaseFormat = "clawbox.io/release/v1"
	IndexFormat   = "clawbox.io/index/v1"

	// MaxNote and MaxIndex bound release.note and index.json in bytes, so that
	// they and MaxRoots roots are no more than 16 MiB.
	MaxNote  = 1 << 20
	MaxIndex = 14 << 20

	// ChunkSize is the unit in which content is verified, in bytes.
	ChunkSize = 4 << 20

	// MaxPart is the largest part: the largest file that FAT32 holds.
	MaxPart = 1<<32 - 1
	// MaxParts is how many parts a bundle may have.
	MaxParts = 9999
	// MaxTotal bounds a bundle's payload; sums below it can't overflow.
	MaxTotal = 1 << 50
	// maxRoot bounds an item's root manifest, as registries do.
	maxRoot = 4 << 20
)

// Release is one version of what a bundle brings.
type Release struct {
	Format    string    `json:"format"`
	Name      string    `json:"name"`
	Version   string    `json:"version"`  // semantic version without "v"
	Sequence  int64     `json:"sequence"` // grows with every release; from 1
	Created   time.Time `json:"created"`  // UTC, whole seconds
	ChunkSize int64     `json:"chunkSize"`
	// UpgradesFrom is the lowest sequence that a host may be upgraded from: an
	// installation that is older needs a release in between. 0: any.
	UpgradesFrom int64 `json:"upgradesFrom,omitempty"`
	// Components are the parts with rules of their own about what may follow
	// on what (CheckStep), such as k3s.
	Components []Component `json:"components,omitempty"`
	// Base is the release that a differential bundle builds upon.
	Base *Base `json:"base,omitempty"`
	// Encryption is Age, or empty: then nothing is encrypted. With it, Index,
	// Parts and Parity describe the encrypted files as they lie on the media.
	Encryption string `json:"encryption,omitempty"`
	Roots      []File `json:"roots,omitempty"` // root/1.note, root/2.note and so on
	Index      File   `json:"index"`
	Parts      []Part `json:"parts"`
	// Parity are Reed-Solomon parts over Parts, parity/parity-0001 and so on: as
	// many parts as there are of them may be lost.
	Parity []Part `json:"parity,omitempty"`
	// Items is empty in the note of an encrypted release: the index has them,
	// so that a stick that is found does not tell what is on it.
	Items []Item `json:"items,omitempty"`
	Roles Roles  `json:"roles"`
}

// Age is the value of Release.Encryption: C2SP age, age-encryption.org/v1.
const Age = "age-encryption.org/v1"

// Base names the release that a host must have before it can take a
// differential bundle.
type Base struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Sequence int64  `json:"sequence"`
	Note     Sum    `json:"note"` // the sha256 of its release.note
}

// String names the release for people.
func (b Base) String() string {
	return fmt.Sprintf("%s %s (sequence %d)", b.Name, b.Version, b.Sequence)
}

// File pins one file: bytes and sha256.
type File struct {
	Size   int64 `json:"size"`
	SHA256 Sum   `json:"sha256"`
}

// Part is one file under parts/ or parity/. Its name is part-0001 or
// parity-0001 and so on.
type Part struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // of the file on the media
	// SHA256 is a parity part's. The other parts have none: each byte of theirs
	// is proved with the blob that it belongs to, and summed once for it.
	SHA256 Sum `json:"sha256,omitzero"`
	// Content is the number of payload bytes in an encrypted part.
	Content int64 `json:"content,omitempty"`
}

// Payload returns how many bytes of the payload the part holds.
func (p Part) Payload() int64 {
	if p.Content > 0 {
		return p.Content
	}
	return p.Size
}

// Item is one thing that the recipe asked for.
type Item struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // see Kinds
	// Ref is the name that the item gets in the store.
	Ref string `json:"ref"`
	// Descriptor is the root manifest: media type, size, digest, and for an
	// artifact its type.
	Descriptor v1.Descriptor `json:"descriptor"`
	// Platforms are the ones inside, such as linux/amd64; images only.
	Platforms       []string `json:"platforms,omitempty"`
	Licence         string   `json:"licence,omitempty"`
	Redistributable bool     `json:"redistributable"`
	// Terms is the sha256 of a text that had to be accepted, in hex, and
	// Accepted who decided what about handing the item on.
	Terms    string               `json:"terms,omitempty"`
	Accepted []licence.Acceptance `json:"accepted,omitempty"`
	// AllowedKeys are findings of the scan for key material that the recipe let
	// through.
	AllowedKeys []AllowedKey `json:"allowedKeys,omitempty"`
	Model       *Model       `json:"model,omitempty"` // models only
	// Path is where the slot wants the file, or the folder of the packages,
	// relative, and Mode the files' permission bits in octal, such as "0755".
	// Placed kinds only.
	Path string `json:"path,omitempty"`
	Mode string `json:"mode,omitempty"`
	// TotalSize is the sum of the item's blobs, in bytes.
	TotalSize int64 `json:"totalSize"`
}

// AllowedKey names key material, by its fingerprint, that is meant to be there.
type AllowedKey struct {
	Fingerprint string `yaml:"fingerprint" json:"fingerprint"`
	Why         string `yaml:"why" json:"why"`

	Line int64 `yaml:"-" json:"-"`
}

// Model is what the files of a model say of it. An engine runs the code that
// comes with a model only when it is told to; who does so can read it first.
type Model struct {
	Format       string     `json:"format,omitempty"`
	Architecture string     `json:"architecture,omitempty"`
	Precision    string     `json:"precision,omitempty"`
	Quantization string     `json:"quantization,omitempty"`
	Params       int64      `json:"params,omitempty"`
	Profile      string     `json:"profile,omitempty"` // chosen for the target's GPUs
	Target       string     `json:"target,omitempty"`  // such as "2 × h100-80gb"
	Code         []CodeFile `json:"code,omitempty"`    // files that could be run
	Asks         []string   `json:"asks,omitempty"`    // configuration that asks to run code
}

// CodeFile is one file that could be run.
type CodeFile struct {
	Name   string  `json:"name"`
	Digest v1.Hash `json:"digest"`
}

// Roles says whose signatures this release carries.
type Roles struct {
	Release Role `json:"release"`
}

// Role is a set of verifier keys (signed-note vkeys), of which Threshold must
// have signed.
type Role struct {
	Keys      []string `json:"keys"`
	Threshold int      `json:"threshold"`
}

// Sum is a sha256, lower-case hex in JSON.
type Sum [sha256.Size]byte

// String returns 64 hex digits.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Digest returns the sum as a content digest.
func (s Sum) Digest() v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: s.String()} }

// MarshalText writes hex.
func (s Sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads 64 hex digits.
func (s *Sum) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return fmt.Errorf("sha256 has %d characters, want %d", len(b), 2*len(s))
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// SumOf returns the content digest h as a Sum.
func SumOf(h v1.Hash) (s Sum, err error) {
	if h.Algorithm != "sha256" {
		return s, fmt.Errorf("digest %.80q: want sha256", h.String())
	}
	return s, s.UnmarshalText([]byte(h.Hex))
}

// PartName returns the name of the n-th part, from 1.
func PartName(n int) string { return fmt.Sprintf("part-%04d", n) }

// ParityName returns the name of the n-th parity part, from 1.
func ParityName(n int) string { return fmt.Sprintf("parity-%04d", n) }

// RootName returns the name of root version n, below root/.
func RootName(n int64) string { return fmt.Sprintf("%d.note", n) }

// encodeRelease is the canonical form: two-space indent, no HTML escapes, a
// newline at the end.
func encodeRelease(r Release) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("encode release: %w", err)
	}
	return b.Bytes(), nil
}

func decodeRelease(text []byte) (Release, error) {
	var r Release
	if err := decode(text, &r); err != nil {
		return Release{}, fmt.Errorf("release: %w", err)
	}
	canon, err := encodeRelease(r)
	if err != nil {
		return Release{}, err
	}
	if err := same("release", text, canon); err != nil {
		return Release{}, err
	}
	return r, r.check()
}

// decode is the first, coarse sieve; same is the fine one.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// same compares what was read with what the encoder would have written.
func same(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	n := 0
	for n < len(got) && n < len(want) && got[n] == want[n] {
		n++
	}
	line := 1 + strings.Count(string(got[:n]), "\n")
	return &TamperedError{What: what, Offset: int64(n), Detail: fmt.Sprintf(
		"line %d is not in canonical form (duplicate key, other spelling or trailing data): build the bundle again", line)}
}
