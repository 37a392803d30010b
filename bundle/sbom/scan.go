package sbom

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/layer"
)

// Package is one installed package.
type Package struct {
	Type    string // of package URLs: deb, apk, golang, npm, pypi
	Name    string
	Version string
	Arch    string
	Licence string // as declared, not checked
	Path    string // where in the image it is recorded
	// Source is the source package's name, which advisories go by; empty when
	// it is the same.
	Source string
}

// Image is what was found in one image.
type Image struct {
	OS       OS
	Packages []Package // sorted, each once
	Unread   []string  // what should hold packages and could not be read, and why
}

// OS is the image's os-release.
type OS struct{ ID, Version, Name string }

// Layer is one layer to read, lowest first.
type Layer struct {
	Digest v1.Hash
	Open   func() (io.ReadCloser, error)
}

// Tee gives a writer that gets the content of a file, or nil. One that is an
// io.Closer is closed at the file's end.
type Tee func(layer v1.Hash, e layer.Entry) io.Writer

// Bounds of what is read into memory: a file, and the packages of an image.
const (
	maxFile     = 64 << 20
	maxPackages = 1 << 20
)

// Scan reads an image's layers. An error is one of reading; what can't be
// understood is in Image.Unread.
func Scan(ctx context.Context, layers []Layer, tee Tee) (Image, error) {
	var all []Seen
	for _, l := range layers {
		s, err := l.read(ctx, tee)
		if err != nil {
			return Image{}, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		all = append(all, s)
	}
	return Merge(all...)
}

func (l Layer) read(ctx context.Context, tee Tee) (Seen, error) {
	in, err := l.Open()
	if err != nil {
		return Seen{}, err
	}
	defer in.Close()
	if tee == nil {
		return ReadLayer(ctx, in, nil)
	}
	return ReadLayer(ctx, in, func(e layer.Entry) io.Writer { return tee(l.Digest, e) })
}

// file is what one file tells.
type file struct {
	packages []Package
	os       *OS
	unread   string
}

// sticky remembers a reader's error.
type sticky struct {
	r   io.Reader
	err error
}

func (s *sticky) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Licence, b.Licence), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Path, b.Path))
}

// where is a row of sources: a pattern of path.Match for the whole path, or for
// the last elements of it when it begins with "**/".
type where struct {
	pattern string
	stream  bool // reads in bounded memory, whatever the size
	read    func(io.Reader, *file) error
	why     string // without read: what is said of it
}

const noRPM = "an RPM database, which this version can't read"

var sources = []where{
	{pattern: "var/lib/dpkg/status", stream: true, read: dpkg},
	{pattern: "var/lib/dpkg/status.d/*.md5sums", read: nothing},
	{pattern: "var/lib/dpkg/status.d/*", read: dpkg},
	{pattern: "lib/apk/db/installed", stream: true, read: apk},
	{pattern: "usr/lib/apk/db/installed", stream: true, read: apk},
	{pattern: "etc/os-release", read: osRelease},
	{pattern: "usr/lib/os-release", read: osRelease},
	{pattern: "var/lib/rpm/Packages", why: noRPM},
	{pattern: "var/lib/rpm/Packages.db", why: noRPM},
	{pattern: "var/lib/rpm/rpmdb.sqlite", why: noRPM},
	{pattern: "usr/lib/sysimage/rpm/Packages.db", why: noRPM},
	{pattern: "usr/lib/sysimage/rpm/rpmdb.sqlite", why: noRPM},
	{pattern: "**/node_modules/*/package.json", read: npm},
	{pattern: "**/node_modules/@*/*/package.json", read: npm},
	{pattern: "**/package-lock.json", read: npmLock},
	{pattern: "**/node_modules/.package-lock.json", read: npmLock},
	{pattern: "**/*.dist-info/METADATA", read: python},
	{pattern: "**/*.egg-info/PKG-INFO", read: python},
	{pattern: "**/*.egg-info", read: python},
}

var goProgram = where{stream: true, read: goBuild}

// byEnd are the rows by the last byte that a path needs to match them; 0: those
// that any path may match. Most of an image's files match none.
var byEnd = func() (t [256][]*where) {
	for i := range sources {
		c := sources[i].pattern[len(sources[i].pattern)-1]
		if c == '*' {
			c = 0
		}
		t[c] = append(t[c], &sources[i])
	}
	return t
}()

// source finds the row for an entry. Any executable may be a Go program.
func source(e layer.Entry) *where {
	for _, rows := range [][]*where{byEnd[e.Path[len(e.Path)-1]], byEnd[0]} {
		for _, w := range rows {
			if match(w.pattern, e.Path) {
				return w
			}
		}
	}
	if e.Mode&0o111 != 0 && e.Size > 4096 {
		return &goProgram
	}
	return nil
}

func match(pattern, p string) bool {
	if i := strings.IndexByte(pattern, '*'); i < 0 || !strings.HasPrefix(p, pattern[:i]) {
		return p == pattern
	}
	if tail, ok := strings.CutPrefix(pattern, "**/"); ok {
		parts, n := strings.Split(p, "/"), strings.Count(tail, "/")+1
		if len(parts) < n {
			return false
		}
		pattern, p = tail, strings.Join(parts[len(parts)-n:], "/")
	}
	ok, _ := path.Match(pattern, p)
	return ok
}

func nothing(io.Reader, *file) error { return nil }

// all reads a file of at most maxFile bytes.
func all(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")), err
}
