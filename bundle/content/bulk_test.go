package content

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestBulk: what a BulkFile takes is what a BulkReader reads, by itself and
// ahead, whatever the alignment.
func TestBulk(t *testing.T) {
	for _, n := range []int{0, 1, aligned, aligned + 1, BulkSize - 1, BulkSize, 2*BulkSize + aligned + 13} {
		b := noise(n)
		path := filepath.Join(t.TempDir(), "f")
		w, err := CreateBulk(path, 0o600)
		must(t, err)
		buf := Buffers(1)[0]
		for off := n; off > 0; { // from the end, by lengths that are whole blocks and not
			k := min(off, 1<<20)
			if off%aligned != 0 {
				k = off % aligned
			}
			off -= k
			_, err := w.WriteAt(buf[:copy(buf, b[off:off+k])], int64(off))
			must(t, err)
		}
		must(t, w.Sync(), w.Close())
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes: wrote %d others, %v", n, len(got), err)
		}
		r, err := OpenBulk(path)
		must(t, err)
		for _, in := range []io.ReaderAt{r, NewAhead(r, int64(n))} {
			got := make([]byte, n)
			for off := 0; off < n; {
				k := min(n-off, 3<<20+1)
				_, err := in.ReadAt(got[off:off+k], int64(off))
				must(t, err)
				off += k
			}
			if !bytes.Equal(got, b) {
				t.Errorf("%d bytes: %T read others", n, in)
			}
			if k, err := in.ReadAt(make([]byte, 2), int64(max(0, n-1))); err != io.EOF || k != min(n, 1) {
				t.Errorf("%T behind the end: %d, %v", in, k, err)
			}
			if a, ok := in.(*Ahead); ok {
				must(t, a.Close())
			}
		}
		must(t, r.Close())
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(os.Args[0], link))
	if _, err := CreateBulk(link, 0o600); err == nil {
		t.Error("it follows links")
	}
}

// counting counts what is read of each byte.
type counting struct {
	io.ReaderAt
	n   int64
	bad int64 // the window that can't be read once, -1: none
}

var errBad = errors.New("bad sector")

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	if off == c.bad {
		c.bad = -1
		return 0, errBad
	}
	c.n += int64(len(p))
	return c.ReaderAt.ReadAt(p, off)
}

// TestAheadOnce: read in order, each byte is read once; a bad window is an
// error where it lies, and can be read again.
func TestAheadOnce(t *testing.T) {
	b := noise(5*BulkSize + 99)
	c := &counting{bytes.NewReader(b), 0, 3 * BulkSize}
	a := NewAhead(c, int64(len(b)))
	defer a.Close()
	got := make([]byte, len(b))
	fails := 0
	for off := 0; off < len(b); {
		n, err := a.ReadAt(got[off:min(len(b), off+1_000_003)], int64(off))
		if off += n; err != nil && errors.Is(err, errBad) {
			if fails++; off != 3*BulkSize {
				t.Fatalf("the error came at %d", off)
			}
		} else {
			must(t, err)
		}
	}
	if fails != 1 || !bytes.Equal(got, b) {
		t.Errorf("%d errors, content right: %v", fails, bytes.Equal(got, b))
	}
	a.wait()
	if c.n != int64(len(b)) {
		t.Errorf("read %d bytes, want %d", c.n, len(b))
	}
}
