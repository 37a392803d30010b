package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func pack(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		body := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, body)
		}
	}
	w.Close()
	return b.Bytes()
}

// told lists a layer's entries in short form.
func told(t *testing.T, r io.Reader) (string, error) {
	var s []string
	err := Walk(t.Context(), r, func(e Entry, body io.Reader) error {
		word := e.Path
		switch {
		case e.Gone:
			word = "-" + word
		case e.Opaque:
			word = "=" + word
		case e.Regular():
			b, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			word += ":" + string(b)
		}
		s = append(s, word)
		return nil
	})
	return strings.Join(s, " "), err
}

func reg(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: body, Mode: 0o644}
}

func TestWalk(t *testing.T) {
	plain := pack(t, reg("./a/b", "1"), reg("/abs", "2"), reg("../../up", "3"), reg("x/../../y", "4"),
		reg("a/.wh.c", ""), reg("d/.wh..wh..opq", ""), reg(".wh..wh.plnk/1", "x"), reg(".wh..wh.aufs", ""),
		tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc/passwd"},
		tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "a/b"}, tar.Header{Typeflag: tar.TypeFifo, Name: "p"})
	const want = "a/b:1 abs:2 up:3 y:4 -a/c =d .wh..wh.plnk/1:x d l h p"
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain)
	z.Close()
	for name, b := range map[string][]byte{"tar": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		got, err := told(t, bytes.NewReader(b))
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if got, err := told(t, bytes.NewReader(b[:len(b)/3])); err == nil {
			t.Errorf("%s, cut off: no error after %q", name, got)
		}
	}
}

func TestWalkEnds(t *testing.T) {
	b := pack(t, reg("a", strings.Repeat("x", 1000)), reg("b", ""))
	stop := errors.New("enough")
	if err := Walk(t.Context(), bytes.NewReader(b), func(Entry, io.Reader) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Walk(ended, bytes.NewReader(b), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// The whole blob is read, so that a digest beside the walk is right.
	var seen bytes.Buffer
	long := append(bytes.Clone(b), make([]byte, 64<<10)...)
	err := Walk(t.Context(), io.TeeReader(bytes.NewReader(long), &seen), func(Entry, io.Reader) error { return nil })
	if err != nil || seen.Len() != len(long) {
		t.Errorf("read %d of %d, %v", seen.Len(), len(long), err)
	}
	if got, err := told(t, strings.NewReader("")); err != nil || got != "" {
		t.Errorf("empty: %q, %v", got, err)
	}
}

// TestWhiteoutOfAll: a whiteout that names no name could hide packages from
// who looks at the image, and not from who runs it.
func TestWhiteoutOfAll(t *testing.T) {
	for _, n := range []string{"a/.wh...", ".wh..", ".wh.", "usr/.wh..."} {
		if got, err := told(t, bytes.NewReader(pack(t, reg(n, "")))); err == nil {
			t.Errorf("%s: got %q", n, got)
		}
	}
}

// TestSizes: a header can claim any size; the walk doesn't wait for it.
func TestSizes(t *testing.T) {
	b := pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Format: tar.FormatGNU})
	copy(b[124:], "\x80\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00") // 2^60, base-256
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	if _, err := told(t, bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(pack(f, reg("a", "b"), reg(".wh.x", "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		Walk(t.Context(), bytes.NewReader(b), func(e Entry, body io.Reader) error {
			if strings.HasPrefix(e.Path, "/") || e.Path == ".." || strings.HasPrefix(e.Path, "../") {
				t.Fatalf("path %q", e.Path)
			}
			_, err := io.Copy(io.Discard, io.LimitReader(body, 1<<20))
			return err
		})
	})
}
