package ledger

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// files refuses everything in the directory that isn't the log's. That the
// log's own files are all there has been seen by then.
func (f *verifier) files() error {
	return filepath.WalkDir(f.dir, func(p string, d fs.DirEntry, err error) error {
		if f.live && errors.Is(err, os.ErrNotExist) {
			return nil // the service renamed it meanwhile
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(f.dir, p)
		if err != nil || name == "." {
			return err
		}
		if !f.known(name, d) {
			return &Fault{name, -1, "does not belong to the log", restore}
		}
		if !f.live && (name == walFile+".new" || name == checkpointFile+".new") {
			return &Fault{name, -1, "is left over from a commit that was cut off", startOnce}
		}
		return nil
	})
}

func (f *verifier) known(name string, d fs.DirEntry) bool {
	switch name {
	case walFile, checkpointFile, walFile + ".new", checkpointFile + ".new":
		return d.Type().IsRegular()
	}
	if !d.IsDir() {
		level, n, ok := parseTile(name)
		return ok && d.Type().IsRegular() && (f.live || n < f.tiles(level))
	}
	// A directory belongs if the lowest tile that it can hold does: 000 in
	// tile/0, x001/000 in tile/0/x001.
	level, n, ok := parseTile(name + "/000")
	return name == tileDir || ok && (f.live || n < f.tiles(level))
}

// tiles is how many full tiles, or with level -1 bundles, the log has.
func (f *verifier) tiles(level int) int64 {
	if level < 0 {
		level = 0
	}
	return f.wal.start() >> (8 * (level + 1))
}

// parseTile is the inverse of tilePath.
func parseTile(name string) (level int, n int64, ok bool) {
	p := strings.Split(name, "/")
	if len(p) < 3 || p[0] != tileDir {
		return 0, 0, false
	}
	level = -1
	if p[1] != "entries" {
		var err error
		if level, err = strconv.Atoi(p[1]); err != nil || level < 0 || level > 6 {
			return 0, 0, false
		}
	}
	for _, s := range p[2:] {
		k, err := strconv.ParseUint(strings.TrimPrefix(s, "x"), 10, 10)
		if err != nil || n > 1<<50 {
			return 0, 0, false
		}
		n = n*1000 + int64(k)
	}
	return level, n, tilePath(level, n) == name
}
