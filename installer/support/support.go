// Package support packs what somebody else needs to help with an appliance, and
// no secret.
//
//	err := support.Write(ctx, w, "/", support.Options{Version: "1.4.0"})
//
// What goes in is a fixed list (pack.go); nothing is taken because it lies in
// some folder. Three layers keep secrets out of it:
//
//  1. Values that may be secret are replaced where they stand: every value of an
//     agent's environment, every argument, user and query of a URL.
//  2. Every text goes through a scrubber that knows the secrets which the
//     appliance keeps, in the forms in which they may show up in a log.
//  3. Every file is held against bundle/licence's scanner; one in which it still
//     finds key material is left out, and the list says so.
//
// Agents' own output and files are never in it, nor the ledger's entries: only
// its signed head. Logs are cut to their end.
//
// Limits: a secret that the appliance does not know and that looks like none,
// such as a password that an agent's program printed into the service's log, is
// not found. Look through the archive before you hand it on.
package support

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/clawbox/clawbox/bundle/licence"
)

// MaxFile bounds one file in the archive, in bytes; of longer ones the end is
// kept.
const MaxFile = 1 << 20

// Options are what Write can't find out itself.
type Options struct {
	Version  string // of the calling program
	Findings string // doctor's, in words
	Facts    any    // and what they rest on
	// Log returns the end of the service's log; nil: none.
	Log func(ctx context.Context) ([]byte, error)
}

// Entry is one line of the archive's list.
type Entry struct {
	Name    string `json:"name"`
	Bytes   int    `json:"bytes"`
	Removed int    `json:"removed,omitempty"` // secrets that were replaced
	Left    string `json:"leftOut,omitempty"` // why it is not there
}

// Write writes a gzipped tar archive and returns what is in it.
func Write(ctx context.Context, w io.Writer, root string, o Options) ([]Entry, error) {
	p := newPack(ctx, root, o)
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	var list []Entry
	for _, f := range contents {
		b, err := f.read(p)
		e := Entry{Name: f.name}
		switch {
		case err != nil:
			e.Left = p.clean([]byte(err.Error()), &e)
		default:
			b = []byte(p.clean(tail(b), &e))
			e.Left = secrets(f.name, b)
		}
		if e.Left == "" {
			e.Bytes = len(b)
			if err := add(t, f.name, b); err != nil {
				return nil, err
			}
		}
		list = append(list, e)
	}
	if err := add(t, "LIST.txt", listing(list)); err != nil {
		return nil, err
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return list, z.Close()
}

func add(t *tar.Writer, name string, b []byte) error {
	h := &tar.Header{Name: "clawbox-support/" + name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(b)), ModTime: time.Now().UTC().Truncate(time.Second)}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.Write(b)
	return err
}

// secrets says what key material the scanner finds in b; "" for none.
func secrets(name string, b []byte) string {
	var found []string
	s := licence.NewScanner(licence.Place{Item: "support bundle", File: name}, func(f licence.Finding) { found = append(found, f.Rule) })
	_, _ = s.Write(b) // never fails
	_ = s.Close()
	if len(found) == 0 {
		return ""
	}
	return fmt.Sprintf("it holds key material: %s", found[0])
}

func tail(b []byte) []byte {
	if len(b) <= MaxFile {
		return b
	}
	return append([]byte("[the beginning is left out]\n"), b[len(b)-MaxFile:]...)
}

func listing(list []Entry) (out []byte) {
	out = fmt.Append(out, "What is in this archive, and what is not. Secrets were replaced by "+removed+".\n\n")
	for _, e := range list {
		switch {
		case e.Left != "":
			out = fmt.Appendf(out, "left out  %s: %s\n", e.Name, e.Left)
		default:
			out = fmt.Appendf(out, "%8d  %s (%d secrets replaced)\n", e.Bytes, e.Name, e.Removed)
		}
	}
	return out
}
