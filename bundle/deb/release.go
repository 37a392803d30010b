package deb

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"
)

// Source is one archive, as a line of sources.list says it.
type Source struct {
	URI        string    // such as http://archive.ubuntu.com/ubuntu
	Suite      string    // jammy; one that ends in "/" is a flat repository's folder
	Components []string  // main, universe …; none for a flat repository
	Keys       []byte    // OpenPGP keys, armoured or not, that must have signed it
	Now        time.Time // for Valid-Until and the keys' times; zero: the clock
}

// Fetch opens a URL; its error is fs.ErrNotExist when there is no such file.
type Fetch func(ctx context.Context, url string) (io.ReadCloser, error)

// Bounds of what is downloaded, and of what is unpacked of it, in bytes.
const (
	maxInRelease = 8 << 20
	maxIndex     = 256 << 20
	maxUnpacked  = 4 << 30
)

// release is a verified InRelease: what its files must be.
type release struct {
	files map[string]sum // by path below the suite's folder
}

type sum struct {
	sha256 string
	size   int64
}

func (s Source) flat() bool { return strings.HasSuffix(s.Suite, "/") }

// base is where InRelease lies; paths in it count from there.
func (s Source) base() string {
	uri := strings.TrimSuffix(s.URI, "/")
	if s.flat() {
		return strings.TrimSuffix(uri+"/"+strings.TrimPrefix(path.Clean("/"+s.Suite), "/"), "/")
	}
	return uri + "/dists/" + s.Suite
}

// pool is where a package's Filename counts from.
func (s Source) pool() string {
	if s.flat() {
		return s.base()
	}
	return strings.TrimSuffix(s.URI, "/")
}

func (s Source) now() time.Time {
	if s.Now.IsZero() {
		return time.Now()
	}
	return s.Now
}

// readRelease fetches InRelease and verifies it.
func (s Source) readRelease(ctx context.Context, fetch Fetch) (*release, error) {
	raw, err := read(ctx, fetch, s.base()+"/InRelease", maxInRelease)
	if err != nil {
		return nil, err
	}
	text, err := s.verify(raw)
	if err != nil {
		return nil, fmt.Errorf("%s/InRelease: %w", s.base(), err)
	}
	r, err := s.parseRelease(text)
	if err != nil {
		return nil, fmt.Errorf("%s/InRelease: %w", s.base(), err)
	}
	return r, nil
}

func read(ctx context.Context, fetch Fetch, url string, limit int64) ([]byte, error) {
	in, err := fetch(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return b, nil
}

// verify returns the signed text of a clear-signed file. Nothing may stand
// before or after it, as that would be read by nobody's signature.
func (s Source) verify(raw []byte) ([]byte, error) {
	keys, err := keyring(s.Keys)
	if err != nil {
		return nil, err
	}
	block, rest := clearsign.Decode(raw)
	if block == nil {
		return nil, errors.New("it is not clear-signed (RFC 9580, section 7)")
	}
	if !bytes.HasPrefix(raw, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("there is text outside the signed message")
	}
	now := s.now()
	if _, err := block.VerifySignature(keys, &packet.Config{Time: func() time.Time { return now }}); err != nil {
		return nil, fmt.Errorf("not signed by a key that the recipe trusts: %w", err)
	}
	return block.Plaintext, nil
}

func keyring(b []byte) (openpgp.EntityList, error) {
	if len(b) == 0 {
		return nil, errors.New("no keys: name the archive's keyring, got another way than the archive")
	}
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		read = openpgp.ReadArmoredKeyRing
	}
	keys, err := read(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return keys, nil
}

var sumLine = regexp.MustCompile(`^([0-9a-f]{64})\s+([0-9]{1,15})\s+(\S+)$`)

// parseRelease reads the paragraph of a Release file (Debian wiki,
// DebianRepository/Format).
func (s Source) parseRelease(text []byte) (*release, error) {
	var got []Stanza
	if err := Stanzas(bytes.NewReader(text), func(st Stanza) error { got = append(got, st); return nil }); err != nil {
		return nil, err
	}
	if len(got) != 1 {
		return nil, fmt.Errorf("%d paragraphs, want one", len(got))
	}
	st := got[0]
	if !s.flat() && st["suite"] != s.Suite && st["codename"] != s.Suite {
		return nil, fmt.Errorf("it is for suite %.40q (codename %.40q), want %s: the mirror serves another release", st["suite"], st["codename"], s.Suite)
	}
	if until := st["valid-until"]; until != "" {
		t, err := time.Parse(time.RFC1123, until)
		if err != nil {
			return nil, fmt.Errorf("Valid-Until %.40q: %w", until, err)
		}
		if s.now().After(t) {
			return nil, fmt.Errorf("it was valid until %s: the mirror is stale, or holds updates back", t.Format(time.DateOnly))
		}
	}
	r := &release{files: map[string]sum{}}
	for line := range strings.Lines(st["sha256"]) {
		m := sumLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		n, _ := strconv.ParseInt(m[2], 10, 64)
		r.files[strings.TrimPrefix(m[3], "./")] = sum{m[1], n}
	}
	if len(r.files) == 0 {
		return nil, errors.New("it lists no files by sha256")
	}
	return r, nil
}

// packings are the forms of a Packages file, the smallest first.
var packings = []struct {
	ext    string
	unpack func(io.Reader) (io.Reader, error)
}{
	{".xz", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) }},
	{".gz", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"", func(r io.Reader) (io.Reader, error) { return r, nil }},
}

// packages fetches one Packages file, holds it to InRelease, and only then
// unpacks and reads it.
func (s Source) packages(ctx context.Context, fetch Fetch, r *release, name string, f func(Stanza) error) error {
	var missing error
	for _, p := range packings {
		want, ok := r.files[name+p.ext]
		if !ok {
			continue
		}
		url := s.base() + "/" + name + p.ext
		raw, err := read(ctx, fetch, url, min(want.size, maxIndex))
		if errors.Is(err, fs.ErrNotExist) {
			missing = err
			continue
		}
		if err != nil {
			return err
		}
		got := sha256.Sum256(raw)
		if int64(len(raw)) != want.size || hex.EncodeToString(got[:]) != want.sha256 {
			return fmt.Errorf("%s: sha256 %x of %d bytes, InRelease says %s of %d: the mirror is being updated, or was tampered with", url, got, len(raw), want.sha256, want.size)
		}
		in, err := p.unpack(bytes.NewReader(raw))
		if err == nil {
			err = Stanzas(&bounded{in, maxUnpacked}, f)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", url, err)
		}
		return nil
	}
	if missing != nil {
		return missing
	}
	return fmt.Errorf("%s: InRelease names no %s, %s.gz or %s.xz: no such component or architecture", s.base(), name, name, name)
}

type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("it unpacks to more than %d bytes", int64(maxUnpacked))
	}
	return n, err
}
