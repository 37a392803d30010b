package ledger

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Head is a state of the log: how many entries, and the Merkle root over
// them (RFC 6962, section 2.1).
type Head struct {
	Size       int64
	Root       tlog.Hash
	Commit     int64  // commits since the log was made, this one included; 0 for the empty log
	Checkpoint []byte // the signed note that says so

	published bool // the note is one for the checkpoint file
}

// An opener turns the bytes of a note into the head that it states.
type opener func(b []byte) (Head, error)

// commitLine begins the extension line that numbers the commits. It stands
// under the signature, so that a checkpoint taken out of the wal leaves a gap
// that nobody without the key can close. Those of the wal say what they are:
// each would else be an older state of the log, ready to be made its
// checkpoint file by whoever cuts off what came after.
const (
	commitLine = "commit "
	walLine    = "wal " + commitLine
)

// signHead states the tree p, as commit number n, for the wal.
func signHead(s note.Signer, p *peaks, n int64) (Head, error) {
	return Head{Size: p.n, Root: p.root(), Commit: n}.signed(s, walLine)
}

// publish is the checkpoint file that states h.
func (h Head) publish(s note.Signer) ([]byte, error) {
	h, err := h.signed(s, commitLine)
	return h.Checkpoint, err
}

// signed is h with a C2SP tlog-checkpoint that states it. The origin is the
// key's name, as the specification recommends; the number is an extension line,
// which it allows after the root.
func (h Head) signed(s note.Signer, line string) (Head, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n%s%d\n", s.Name(), h.Size, h.Root, line, h.Commit)
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		return Head{}, fmt.Errorf("sign checkpoint of size %d: %w", h.Size, err)
	}
	h.Checkpoint, h.published = b, line == commitLine
	return h, nil
}

// parseHead reads the four lines of a checkpoint's text. It accepts exactly
// what signHead writes.
func parseHead(text, origin string) (Head, error) {
	l := strings.SplitAfter(text, "\n")
	if len(l) != 5 || l[4] != "" {
		return Head{}, fmt.Errorf("checkpoint has %d lines, want 4: origin, size, root, commit", len(l)-1)
	}
	if got := strings.TrimSuffix(l[0], "\n"); origin != "" && got != origin {
		return Head{}, fmt.Errorf("checkpoint is of log %q, want %q", got, origin)
	}
	size, ok := decimal(l[1])
	if !ok {
		return Head{}, fmt.Errorf("checkpoint size %q is not a plain decimal number", strings.TrimSuffix(l[1], "\n"))
	}
	root, err := tlog.ParseHash(strings.TrimSuffix(l[2], "\n"))
	if err != nil || root.String()+"\n" != l[2] { // base64 has spare bits: compare
		return Head{}, fmt.Errorf("checkpoint root %q is not base64 of 32 bytes", strings.TrimSuffix(l[2], "\n"))
	}
	line, inWal := strings.CutPrefix(l[3], walLine)
	line, published := strings.CutPrefix(line, commitLine)
	n, ok := decimal(line)
	if !ok || inWal == published {
		return Head{}, fmt.Errorf("checkpoint has the line %q, want %q or %q and a plain decimal number", strings.TrimSuffix(l[3], "\n"), commitLine, walLine)
	}
	return Head{Size: size, Root: root, Commit: n, published: published}, nil
}

// decimal reads a line that holds a number of 0 or more in its only spelling.
func decimal(line string) (int64, bool) {
	s := strings.TrimSuffix(line, "\n")
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}

// strict opens notes written by the log itself: one signature, by v, and not
// a byte that signHead would have written differently. Without this rule the
// spare bits of the signature's base64 could be changed unnoticed.
func strict(v note.Verifier) opener {
	known := note.VerifierList(v)
	return func(b []byte) (Head, error) {
		n, err := note.Open(b, known)
		if err != nil {
			return Head{}, fmt.Errorf("checkpoint signature: %w (want a signature by %s)", err, v.Name())
		}
		h, err := parseHead(n.Text, v.Name())
		if err != nil {
			return Head{}, err
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64)
		if err != nil {
			return Head{}, fmt.Errorf("checkpoint signature is not canonical base64: %w", err)
		}
		want := fmt.Sprintf("%s\n— %s %s\n", n.Text, v.Name(), base64.StdEncoding.EncodeToString(sig))
		if string(b) != want {
			return Head{}, errors.New("checkpoint carries more than its text and one signature")
		}
		h.Checkpoint = b
		return h, nil
	}
}

// anchored opens notes kept elsewhere, to which witnesses may have added
// their lines.
func anchored(v note.Verifier) opener {
	return func(b []byte) (Head, error) {
		n, err := note.Open(b, note.VerifierList(v))
		if err != nil {
			return Head{}, fmt.Errorf("%w (want a signature by %s)", err, v.Name())
		}
		h, err := parseHead(n.Text, v.Name())
		h.Checkpoint = b
		return h, err
	}
}

// unverified reads a note without a key. Only readers of a log that Verify
// has seen, or that don't decide by it, may use this.
func unverified(b []byte) (Head, error) {
	text, _, ok := strings.Cut(string(b), "\n\n")
	if !ok {
		return Head{}, errors.New("checkpoint is not a signed note")
	}
	h, err := parseHead(text+"\n", "")
	h.Checkpoint = b
	return h, err
}

// peaks are the roots of the perfect subtrees that make up a tree of n
// leaves, largest first: all that is needed to append and to state the root.
type peaks struct {
	n     int64
	roots []tlog.Hash
}

func (p *peaks) add(leaf tlog.Hash) {
	p.roots = append(p.roots, leaf)
	for n := p.n; n&1 == 1; n >>= 1 {
		k := len(p.roots) - 2
		p.roots = append(p.roots[:k], tlog.NodeHash(p.roots[k], p.roots[k+1]))
	}
	p.n++
}

func (p *peaks) root() tlog.Hash {
	if p.n == 0 {
		return sha256.Sum256(nil) // RFC 6962: the hash of an empty list
	}
	k := len(p.roots) - 1
	h := p.roots[k]
	for k--; k >= 0; k-- {
		h = tlog.NodeHash(p.roots[k], h)
	}
	return h
}

func (p *peaks) clone() peaks {
	return peaks{p.n, append([]tlog.Hash(nil), p.roots...)}
}
