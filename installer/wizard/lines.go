package wizard

import (
	"errors"
	"io"
)

// lineReader hands out at most one line per Read and never reads ahead. The
// form library makes a new buffered scanner for every prompt; with an ordinary
// reader the first of them swallows the answers to all the others.
type lineReader struct {
	r   io.Reader
	eof bool // the input ended where an answer was wanted
}

// Read reads byte by byte up to a newline; interactive input is not in a hurry.
func (l *lineReader) Read(p []byte) (int, error) {
	for n := range p {
		_, err := io.ReadFull(l.r, p[n:n+1])
		if err != nil && n > 0 && errors.Is(err, io.EOF) {
			// A last line without a newline is an answer all the same; the
			// next Read finds the end again.
			return n, nil
		}
		if err != nil {
			l.eof = true
			return n, err
		}
		if p[n] == '\n' {
			return n + 1, nil
		}
	}
	return len(p), nil
}

// ended says whether a prompt has met the end of input. The scanner asks once
// more after a line without a newline, so that line counts as cut off: half an
// answer is none.
func (l *lineReader) ended() bool { return l.eof }
