package manifest

import (
	"errors"
	"fmt"
)

var (
	// ErrUntrusted says that too few trusted keys signed a release.
	ErrUntrusted = errors.New("not signed by the keys that this host trusts")
	// ErrTampered says that bytes are not the ones that were signed.
	ErrTampered = errors.New("not the bytes that were signed")
	// ErrIncomplete says that something that was signed is missing or cut off:
	// an interrupted copy, or a stick that isn't plugged in.
	ErrIncomplete = errors.New("incomplete")
	// ErrSealed says that a release is encrypted and no identity opens it.
	ErrSealed = errors.New("encrypted")
	// ErrNoBase says that a host lacks what a differential release builds upon.
	ErrNoBase = errors.New("builds upon a release that this host doesn't have")
	// ErrRollback says that a release is older than what is installed.
	ErrRollback = errors.New("older than the installed release")
)

// TamperedError is an ErrTampered with the place. Part is 0 and Offset counts
// from the start of the file when it is not about a part.
type TamperedError struct {
	What   string // such as "release.note" or "blob sha256:… of item tiny"
	Part   int
	Offset int64 // bytes
	Detail string
}

func (e *TamperedError) Error() string {
	if e.Part > 0 {
		return fmt.Sprintf("%s at offset %d (%s): %s", PartName(e.Part), e.Offset, e.What, e.Detail)
	}
	return fmt.Sprintf("%s: %s", e.What, e.Detail)
}

// Is makes errors.Is(err, ErrTampered) true.
func (e *TamperedError) Is(target error) bool { return target == ErrTampered }

// RollbackError is an ErrRollback with both sequence numbers.
type RollbackError struct{ Installed, Offered int64 }

func (e *RollbackError) Error() string {
	return fmt.Sprintf("release has sequence %d, installed is %d: an older release is refused: keep what is installed, get a release of sequence %d or higher, or go back to the release that an upgrade kept with 'clawbox rollback'",
		e.Offered, e.Installed, e.Installed)
}

// Is makes errors.Is(err, ErrRollback) true.
func (e *RollbackError) Is(target error) bool { return target == ErrRollback }

// CheckSequence refuses to go back. The same sequence may be installed again:
// that is a repair.
func CheckSequence(installed, offered int64) error {
	if offered < installed {
		return &RollbackError{Installed: installed, Offered: offered}
	}
	return nil
}
