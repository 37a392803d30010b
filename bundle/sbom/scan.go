package sbom

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
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
	c := &collector{found: map[string]*file{}, above: map[string]bool{}}
	for i, l := range layers {
		if err := c.layer(ctx, i, l, tee); err != nil {
			return Image{}, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return c.image(), nil
}

// file is what one path of the image tells.
type file struct {
	layer    int
	packages []Package
	os       *OS
	unread   string
}

type collector struct {
	found map[string]*file
	above map[string]bool // folders that something was ever found below
	total int
}

func (c *collector) layer(ctx context.Context, i int, l Layer, tee Tee) error {
	in, err := l.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	return layer.Walk(ctx, in, func(e layer.Entry, body io.Reader) error {
		c.hide(i, e)
		if !e.Regular() {
			return nil
		}
		if err := c.teed(i, l.Digest, e, body, tee); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		return nil
	})
}

// teed reads one file, all of it when the tee wants it.
func (c *collector) teed(i int, h v1.Hash, e layer.Entry, body io.Reader, tee Tee) error {
	var w io.Writer
	if tee != nil {
		w = tee(h, e)
	}
	if w == nil {
		return c.file(i, e, body)
	}
	body = io.TeeReader(body, w)
	err := c.file(i, e, body)
	if err == nil {
		_, err = io.Copy(io.Discard, body)
	}
	if cl, ok := w.(io.Closer); ok {
		err = errors.Join(err, cl.Close())
	}
	return err
}

// hide forgets what the entry replaces.
func (c *collector) hide(i int, e layer.Entry) {
	if !e.Opaque {
		delete(c.found, e.Path)
	}
	if !c.above[e.Path] || !e.Gone && !e.Opaque && e.Mode.IsDir() {
		return
	}
	for p, f := range c.found {
		if f.layer < i && (e.Path == "." || strings.HasPrefix(p, e.Path+"/")) {
			delete(c.found, p)
		}
	}
}

// keep remembers what a path tells, and the folders above it.
func (c *collector) keep(p string, f *file) {
	c.found[p] = f
	for d := path.Dir(p); !c.above[d]; d = path.Dir(d) {
		c.above[d] = true
	}
}

func (c *collector) file(i int, e layer.Entry, body io.Reader) error {
	f := &file{layer: i}
	s := source(e)
	if s == nil {
		return nil
	}
	if s.read == nil {
		f.unread = s.why
	} else if err := c.read(s, e, body, f); err != nil {
		return err
	}
	for j := range f.packages {
		f.packages[j].Path = e.Path
	}
	if c.total += len(f.packages); c.total > maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	if f.packages != nil || f.os != nil || f.unread != "" {
		c.keep(e.Path, f)
	}
	return nil
}

// read calls the source's reader, and tells an error of the input, which ends
// the scan, from one of the format, which is noted.
func (c *collector) read(s *where, e layer.Entry, body io.Reader, f *file) error {
	in := &sticky{r: body}
	if !s.stream && e.Size > maxFile {
		f.unread = fmt.Sprintf("%d bytes, more than %d", e.Size, maxFile)
		return nil
	}
	err := s.read(in, f)
	if in.err != nil {
		return in.err
	}
	if err != nil {
		f.packages, f.unread = nil, err.Error()
	}
	return nil
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

func (c *collector) image() Image {
	var out Image
	for _, p := range []string{"usr/lib/os-release", "etc/os-release"} { // the second wins
		if f := c.found[p]; f != nil && f.os != nil {
			out.OS = *f.os
		}
	}
	for p, f := range c.found {
		out.Packages = append(out.Packages, f.packages...)
		if f.unread != "" {
			out.Unread = append(out.Unread, p+": "+f.unread)
		}
	}
	slices.Sort(out.Unread)
	slices.SortFunc(out.Packages, comparePackages)
	out.Packages = slices.CompactFunc(out.Packages, func(a, b Package) bool {
		a.Path = b.Path // the first path stands for all
		return a == b
	})
	return out
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
	{pattern: "var/lib/rpm/Packages", why: noRPM}, {pattern: "var/lib/rpm/Packages.db", why: noRPM}, {pattern: "var/lib/rpm/rpmdb.sqlite", why: noRPM},
	{pattern: "usr/lib/sysimage/rpm/Packages.db", why: noRPM}, {pattern: "usr/lib/sysimage/rpm/rpmdb.sqlite", why: noRPM},
	{pattern: "**/node_modules/*/package.json", read: npm},
	{pattern: "**/node_modules/@*/*/package.json", read: npm},
	{pattern: "**/package-lock.json", read: npmLock},
	{pattern: "**/node_modules/.package-lock.json", read: npmLock},
	{pattern: "**/*.dist-info/METADATA", read: python},
	{pattern: "**/*.egg-info/PKG-INFO", read: python},
	{pattern: "**/*.egg-info", read: python},
}

var goProgram = where{stream: true, read: goBuild}

// source finds the row for an entry. Any executable may be a Go program.
func source(e layer.Entry) *where {
	for i := range sources {
		if match(sources[i].pattern, e.Path) {
			return &sources[i]
		}
	}
	if e.Mode&0o111 != 0 && e.Size > 4096 {
		return &goProgram
	}
	return nil
}

func match(pattern, p string) bool {
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
