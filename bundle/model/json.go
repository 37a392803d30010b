package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// reader walks JSON token by token, so that duplicate and unknown keys can be
// refused and nothing is built that was not asked for.
type reader struct{ dec *json.Decoder }

func newReader(r io.Reader) reader {
	d := json.NewDecoder(r)
	d.UseNumber()
	return reader{d}
}

// object calls f for each key; f reads the value.
func (r reader) object(f func(key string) error) error {
	if err := r.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for r.dec.More() {
		key, err := r.str()
		if err != nil {
			return err
		}
		if seen[key] {
			return fmt.Errorf("key %.80q a second time", key)
		}
		seen[key] = true
		if err := f(key); err != nil {
			return err
		}
	}
	return r.delim('}')
}

func (r reader) delim(want json.Delim) error {
	t, err := r.dec.Token()
	if err != nil {
		return cutOff(err)
	}
	if t != want {
		return fmt.Errorf("got %.40q, want %q", fmt.Sprint(t), want)
	}
	return nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the text is cut off")
	}
	return err
}

// maxString bounds names and values, in bytes.
const maxString = 64 << 10

func (r reader) str() (string, error) {
	t, err := r.dec.Token()
	if err != nil {
		return "", cutOff(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("got %.40q, want a string", fmt.Sprint(t))
	}
	if len(s) > maxString || !utf8.ValidString(s) {
		return "", fmt.Errorf("a string of %d bytes, want valid UTF-8 of at most %d", len(s), maxString)
	}
	return s, nil
}

// maxList bounds the numbers of a list: dimensions, offsets.
const maxList = 16

// numbers reads a list of whole numbers from 0 on.
func (r reader) numbers() ([]int64, error) {
	if err := r.delim('['); err != nil {
		return nil, err
	}
	var out []int64
	for r.dec.More() {
		t, err := r.dec.Token()
		if err != nil {
			return nil, cutOff(err)
		}
		num, _ := t.(json.Number)
		n, err := strconv.ParseInt(string(num), 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("got %.40q, want a whole number from 0 on", fmt.Sprint(t))
		}
		if out = append(out, n); len(out) > maxList {
			return nil, fmt.Errorf("more than %d numbers in a list", maxList)
		}
	}
	return out, r.delim(']')
}

// end refuses anything but white space after the value.
func (r reader) end() error {
	if t, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("got %.40q after the end", fmt.Sprint(t))
	}
	return nil
}
