package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"github.com/clawbox/clawbox/internal/durable"
)

// exported is a line of Export.
type exported struct {
	Index int64           `json:"index"`
	Event json.RawMessage `json:"event"`
}

// Export writes one JSON object a line: the index and the OCSF event. The
// event's bytes are the ones that were hashed; Prove makes a proof for one.
func Export(w io.Writer, seq iter.Seq2[Entry, error]) error {
	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false) // keep the event byte for byte
	for e, err := range seq {
		if err != nil {
			return errors.Join(err, buf.Flush())
		}
		if err := enc.Encode(exported{e.Index, e.Event}); err != nil {
			return fmt.Errorf("export entry %d: %w", e.Index, err)
		}
	}
	return buf.Flush()
}

// ExportTiles writes the log in dir to out, which must not exist or be empty,
// as a complete C2SP tlog-tiles tree: with the partial tiles and bundle and
// the newest checkpoint, ready for a static web server and public tools. Full
// tiles are copied as they are: run Verify first. The checkpoint is written
// last, so that an export that was cut off has none.
func ExportTiles(dir, out string) error {
	dir, out = filepath.Clean(dir), filepath.Clean(out)
	if es, err := os.ReadDir(out); err == nil && len(es) > 0 {
		return fmt.Errorf("export tiles: %s is not empty: choose another directory", out)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("export tiles: %w", err)
	}
	w, err := readWal(dir, unverified)
	if err != nil {
		return fmt.Errorf("export tiles: %w", err)
	}
	x := exporter{dir, out, hashes{dir, w.start(), w.leaves}}
	if err := x.all(w); err != nil {
		return fmt.Errorf("export tiles: %w", err)
	}
	return nil
}

type exporter struct {
	dir, out string
	tiles    hashes
}

func (x *exporter) all(w *walImage) error {
	for n := range x.tiles.start / width {
		if err := x.copy(tilePath(-1, n)); err != nil {
			return err
		}
	}
	for at := 0; at < len(w.entries); at += width {
		es := w.entries[at:min(at+width, len(w.entries))]
		if err := x.partial(-1, (x.tiles.start+int64(at))/width, len(es), appendBundle(nil, es...)); err != nil {
			return err
		}
	}
	for l, n := 0, x.tiles.size(); n > 0; l, n = l+1, n/width {
		if err := x.level(l, n); err != nil {
			return err
		}
	}
	return x.write(checkpointFile, w.head().Checkpoint)
}

// level writes the n hashes of one tile level.
func (x *exporter) level(l int, n int64) error {
	full := x.tiles.start >> (8 * (l + 1)) // these are files already
	for i := range full {
		if err := x.copy(tilePath(l, i)); err != nil {
			return err
		}
	}
	for i := full; i*width < n; i++ {
		hs, err := x.tiles.row(l, i*width, int(min(width, n-i*width)))
		if err != nil {
			return err
		}
		if err := x.partial(l, i, len(hs), joinHashes(hs)); err != nil {
			return err
		}
	}
	return nil
}

// partial writes a tile of k hashes or bundle of k entries; one that has all
// of them has no width in its name.
func (x *exporter) partial(l int, n int64, k int, b []byte) error {
	p := tilePath(l, n)
	if k < width {
		p = fmt.Sprintf("%s.p/%d", p, k)
	}
	return x.write(p, b)
}

func (x *exporter) copy(p string) error {
	b, err := readPlain(x.dir, p, maxTile)
	if err != nil {
		return err
	}
	return x.write(p, b)
}

func (x *exporter) write(p string, b []byte) error {
	p = filepath.Join(x.out, p)
	if err := durable.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(p, b, 0o644)
}
