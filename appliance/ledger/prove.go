package ledger

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Proof shows that an event is an entry of a log, to somebody who has the
// log's key and nothing else. It is made for JSON.
type Proof struct {
	Index      int64            `json:"index"`
	Event      []byte           `json:"event"` // base64 in JSON: the bytes count
	Hashes     tlog.RecordProof `json:"hashes"`
	Checkpoint string           `json:"checkpoint"`
}

// Prove makes the proof of entry index under the newest checkpoint of the log
// in dir. It believes the files; CheckProof finds out if they were wrong.
func Prove(dir string, index int64) (Proof, error) {
	dir = filepath.Clean(dir)
	w, err := readWal(dir, unverified)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry: %w", err)
	}
	if index < 0 || index >= w.head().Size {
		return Proof{}, fmt.Errorf("prove entry: index %d, want 0 to %d", index, w.head().Size-1)
	}
	var e []byte
	if at := index - w.start(); at >= 0 {
		e = w.entries[at]
	} else {
		es, err := readBundle(dir, index/width)
		if err != nil {
			return Proof{}, fmt.Errorf("prove entry: %w", err)
		}
		e = es[index%width]
	}
	hs, err := tlog.ProveRecord(w.head().Size, index, &hashes{dir, w.start(), w.leaves})
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry: %w", err)
	}
	return Proof{index, e, hs, string(w.head().Checkpoint)}, nil
}

// CheckProof returns the record that p proves, or why it doesn't.
func CheckProof(p Proof, v note.Verifier) (Record, error) {
	h, err := anchored(v)([]byte(p.Checkpoint))
	if err != nil {
		return Record{}, fmt.Errorf("check proof: %w", err)
	}
	if p.Index < 0 || p.Index >= h.Size {
		return Record{}, fmt.Errorf("check proof: index %d in a log of %d entries", p.Index, h.Size)
	}
	if err := tlog.CheckRecord(p.Hashes, h.Size, h.Root, p.Index, tlog.RecordHash(p.Event)); err != nil {
		return Record{}, errors.New("check proof: the event is not entry " + fmt.Sprint(p.Index) + " of the log that the checkpoint is of")
	}
	return decode(p.Event)
}
