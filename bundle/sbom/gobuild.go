package sbom

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime/debug"
	"strings"
)

// Go's linker leaves build information behind this mark, aligned to 16 bytes
// (cmd/link/internal/ld/data.go, buildinfo; debug/buildinfo reads it). From Go
// 1.18 on the two strings follow the 32-byte header. debug/buildinfo wants to
// seek, and a layer can't; so the mark is looked for as the stream goes by.
const (
	goMark   = "\xff Go buildinf:"
	goHeader = 32
	goAlign  = 16
	inlined  = 2 // flag: strings follow
	maxInfo  = 4 << 20

	maxVersion = 256 // bytes, its length included
)

// goBuild reads the modules of a Go program; another program has none.
func goBuild(r io.Reader, f *file) error {
	in := bufio.NewReaderSize(r, 256<<10)
	if head, err := in.Peek(4); err != nil || string(head) != "\x7fELF" {
		return nil
	}
	for {
		b, _ := in.Peek(goHeader + maxVersion)
		if len(b) < goHeader+2 { // the end
			return nil
		}
		if plausible(b) {
			in.Discard(goHeader)
			info, err := goStrings(in)
			if err != nil {
				return err
			}
			return f.modules(info)
		}
		if nextMark(in) != nil {
			return nil
		}
	}
}

// plausible tells build information from a program that looks for the mark, as
// this one does: a version follows.
func plausible(b []byte) bool {
	if !bytes.HasPrefix(b, []byte(goMark)) || b[goAlign-1]&inlined == 0 {
		return false
	}
	n, k := binary.Uvarint(b[goHeader:])
	if k <= 0 || n < 3 || n > maxVersion-2 || len(b) < goHeader+k+int(n) {
		return false
	}
	v := b[goHeader+k:]
	return bytes.HasPrefix(v, []byte("go1")) || bytes.HasPrefix(v, []byte("devel"))
}

// nextMark moves to the next aligned place where the mark may begin. Everything
// before was read in whole buffers of 16 bytes' multiples.
func nextMark(in *bufio.Reader) error {
	if _, err := in.Discard(goAlign); err != nil {
		return err
	}
	for {
		b, err := in.Peek(max(in.Buffered()/goAlign*goAlign, goAlign))
		if err != nil && len(b) < goAlign {
			return err
		}
		for i := 0; ; i += goAlign {
			j := bytes.Index(b[i:], []byte(goMark))
			if j < 0 {
				break
			}
			i += j
			if i%goAlign == 0 {
				_, err := in.Discard(i)
				return err
			}
			i = i / goAlign * goAlign
		}
		if _, err := in.Discard(len(b) / goAlign * goAlign); err != nil {
			return err
		}
	}
}

// goStrings reads version and module information.
func goStrings(in *bufio.Reader) (*debug.BuildInfo, error) {
	version, ok := goString(in)
	mod, ok2 := goString(in)
	if !ok || !ok2 {
		return nil, errors.New("the build information of a Go program is cut off")
	}
	// The text stands between two marks of 16 bytes; without modules it is empty.
	if len(mod) >= 33 && mod[len(mod)-17] == '\n' {
		mod = mod[16 : len(mod)-16]
	} else {
		mod = ""
	}
	info, err := debug.ParseBuildInfo(mod)
	if err != nil {
		return nil, err
	}
	info.GoVersion = version
	return info, nil
}

func goString(in *bufio.Reader) (string, bool) {
	n, err := binary.ReadUvarint(in)
	if err != nil || n > maxInfo {
		return "", false
	}
	var b bytes.Buffer // grows with what is really there
	if _, err := io.CopyN(&b, in, int64(n)); err != nil {
		return "", false
	}
	return b.String(), true
}

// modules adds the program's own module, its dependencies and the standard
// library, whose advisories go by Go's version.
func (f *file) modules(info *debug.BuildInfo) error {
	version, _, _ := strings.Cut(info.GoVersion, " ")
	if err := f.add(Package{Type: "golang", Name: "stdlib", Version: strings.TrimPrefix(version, "go")}); err != nil {
		return err
	}
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Replace != nil {
			m = m.Replace
		}
		if m.Path == "" || strings.HasPrefix(m.Path, ".") || strings.HasPrefix(m.Path, "/") {
			continue // a replacement by a folder has no version of its own
		}
		if m.Version == "" {
			m.Version = "(devel)"
		}
		if err := f.add(Package{Type: "golang", Name: m.Path, Version: m.Version}); err != nil {
			return err
		}
	}
	return nil
}
