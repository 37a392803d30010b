package confine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds one message, in bytes. A spec that lists every file of a
// large /usr/bin takes some 100 KiB.
const maxMessage = 4 << 20

// Send writes v as one line of JSON.
func Send(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// receive reads one line and decodes it strictly: an unknown field, a field
// given twice, or anything after the document is an error.
func receive(r io.Reader, v any) error {
	line, err := bufio.NewReader(io.LimitReader(r, maxMessage)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("no complete message after %d bytes (limit %d): %w", len(line), maxMessage, err)
	}
	return decode(line, v)
}

func decode(b []byte, v any) error {
	if err := unique(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end of the document")
	}
	return nil
}

// unique walks one JSON value and refuses an object that has a key twice:
// encoding/json would silently take the last.
func unique(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			k, _ := t.(string)
			if seen[k] {
				return fmt.Errorf("field %q is given twice", k)
			}
			seen[k] = true
		}
		if err := unique(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
