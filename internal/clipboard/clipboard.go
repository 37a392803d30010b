// Package clipboard stands in for github.com/atotto/clipboard, on which the
// wizard's text fields depend: an appliance has no clipboard. The original looks
// for seven programs in each folder of PATH whenever clawbox starts, for whatever
// verb, and the wizard, which runs as root, would run the one that it found.
package clipboard

import "errors"

// Unsupported says that there is no clipboard.
const Unsupported = true

// errNone is what reading and writing say.
var errNone = errors.New("clawbox uses no clipboard: type the text, or paste it with the terminal")

// ReadAll fails.
func ReadAll() (string, error) { return "", errNone }

// WriteAll fails.
func WriteAll(string) error { return errNone }
