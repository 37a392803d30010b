package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func readAll(dir string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, walFile)) }

func TestProof(t *testing.T) {
	k := newKeys(t, "ledger.example")
	const n = walEntries + 600 // some in bundles, some in the wal
	dir := newLog(t, k, n, 60)
	for _, i := range []int64{0, 1, width - 1, width, walEntries - 1, walEntries, walEntries + width, n - 1} {
		p, err := Prove(dir, i)
		must(t, err)
		b, err := json.Marshal(p) // an auditor gets it as a file
		must(t, err)
		var q Proof
		must(t, json.Unmarshal(b, &q))
		r, err := CheckProof(q, k.v)
		must(t, err)
		if r.Host != fmt.Sprintf("h%d.example", i) {
			t.Errorf("proof of entry %d is of %+v", i, r)
		}
		for name, bad := range map[string]func(*Proof){
			"index":  func(p *Proof) { p.Index ^= 1 },
			"far":    func(p *Proof) { p.Index = n },
			"below":  func(p *Proof) { p.Index = -1 },
			"event":  func(p *Proof) { p.Event = bytes.Replace(p.Event, []byte("ada"), []byte("eve"), 1) },
			"hash":   func(p *Proof) { p.Hashes[0][3] ^= 1 },
			"short":  func(p *Proof) { p.Hashes = p.Hashes[1:] },
			"other":  func(p *Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, fmt.Sprint(n), fmt.Sprint(n+1), 1) },
			"no key": func(p *Proof) { p.Checkpoint = "" },
		} {
			var q Proof
			must(t, json.Unmarshal(b, &q))
			bad(&q)
			if _, err := CheckProof(q, k.v); err == nil {
				t.Errorf("entry %d: %s was accepted", i, name)
			}
		}
	}
	for _, i := range []int64{-1, n} {
		if _, err := Prove(dir, i); err == nil {
			t.Errorf("proved entry %d of %d", i, n)
		}
	}
}

func TestExport(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, 300, 60)
	var out bytes.Buffer
	must(t, Export(&out, Filter{}.Select(Read(dir, 250))))
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 50 {
		t.Fatalf("%d lines", len(lines))
	}
	var x exported
	must(t, json.Unmarshal([]byte(lines[7]), &x))
	p, err := Prove(dir, 257)
	must(t, err)
	if x.Index != 257 || !bytes.Equal(x.Event, p.Event) {
		t.Errorf("line is %s", lines[7])
	}
}

// client reads an exported tree as a public tool does: it asks for the tiles
// by C2SP path, and x/mod's TileHashReader checks them against the checkpoint.
type client struct {
	t   *testing.T
	dir string
}

func (c client) Height() int                     { return 8 }
func (c client) SaveTiles([]tlog.Tile, [][]byte) {}
func (c client) ReadTiles(ts []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, x := range ts {
		b, err := os.ReadFile(filepath.Join(c.dir, strings.Replace(x.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func TestExportTiles(t *testing.T) {
	k := newKeys(t, "ledger.example")
	for _, n := range []int{0, 1, width, width + 1, 600, walEntries, walEntries + 600} {
		dir := newLog(t, k, n, 60)
		out := filepath.Join(t.TempDir(), "out")
		must(t, ExportTiles(dir, out))
		h, err := strict(k.v)(readFile(t, out, checkpointFile))
		must(t, err)
		if h.Size != int64(n) {
			t.Fatalf("checkpoint is of %d entries", h.Size)
		}
		r := tlog.TileHashReader(tlog.Tree{N: h.Size, Hash: h.Root}, client{t, out})
		for i := range int64(n) {
			p := tilePath(-1, i/width)
			if i/width == h.Size/width {
				p = fmt.Sprintf("%s.p/%d", p, h.Size%width)
			}
			es, err := splitBundle(readFile(t, out, p))
			must(t, err)
			hs, err := r.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
			must(t, err)
			if hs[0] != tlog.RecordHash(es[i%width]) {
				t.Fatalf("entry %d of %d", i, n)
			}
		}
		if err := ExportTiles(dir, out); err == nil {
			t.Error("exported over an export")
		}
	}
}

func TestTilePath(t *testing.T) {
	for n, want := range map[int64]string{0: "000", 7: "007", 999: "999", 1000: "x001/000", 1234067: "x001/x234/067"} {
		if got := tilePath(2, n); got != "tile/2/"+want {
			t.Errorf("tile %d is %s", n, got)
		}
		if l, m, ok := parseTile(tilePath(-1, n)); !ok || l != -1 || m != n {
			t.Errorf("tile %d parses as %d %d %v", n, l, m, ok)
		}
	}
	for _, bad := range []string{"tile/0/00", "tile/0/0000", "tile/0/x000/000", "tile/00/000", "tile/0/001/x002", "tile/7/000", "tile/-1/000", "tile/0/000.p/3", "tile/0/+12", "tile/entries"} {
		if _, _, ok := parseTile(bad); ok {
			t.Errorf("%s parses", bad)
		}
	}
}
