package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/backup"
	"github.com/clawbox/clawbox/installer/wizard"
)

// The exit statuses, documented by `clawbox help exit-status`.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitUntrusted   = 3
	exitRefused     = 4
	exitNotFound    = 5
	exitUnreachable = 6
	exitReturned    = 7
	exitInterrupted = 130
)

const exitHelp = `  0    done
  1    failed; standard error says what, and what to do next
  2    the command line, a recipe, an answers file or a policy is wrong
  3    not trusted: a signature, a digest or the ledger does not hold, or media are
       not complete
  4    refused: by preflight, by the appliance's state, by an operator, for licences
       or for key material
  5    what was named does not exist
  6    no appliance answers on the control socket
  7    an upgrade or a rollback did not hold: the release before is in place again
  130  interrupted
'agent connect' ends with the status of the program that it ran.
`

// usageError marks an error as the caller's: bad flags or bad input text.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// untrusted marks an error as a proof that does not hold.
type untrusted struct{ error }

func (e untrusted) Unwrap() error { return e.error }

// exitCode is the status of a program that ran for us; nothing is printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report prints err once and maps it to an exit status. Whoever chose a name in
// it may have put a line feed there: only the first line begins at the margin.
func report(ctx context.Context, w io.Writer, err error) int {
	var code exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(w, "clawbox: interrupted")
		return exitInterrupted
	}
	fmt.Fprintf(escaper{w}, "clawbox: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
	return status(err)
}

// cobraUsage are the beginnings of cobra's own complaints about a command
// line; they have no type.
var cobraUsage = []string{"required flag", "if any flags in the group", "unknown command"}

// status maps an error to its exit status.
func status(err error) int {
	var usage usageError
	var returned *installer.ReturnedError
	var refusal *control.Error
	var proof untrusted
	var fault *ledger.Fault
	var preflight *installer.ErrPreflight
	var secrets *licence.SecretError
	var export *licence.RefusedError
	var syntax *bundle.SyntaxError
	for _, said := range cobraUsage {
		if strings.HasPrefix(err.Error(), said) {
			return exitUsage
		}
	}
	switch {
	case errors.As(err, &returned): // whatever the reason was
		return exitReturned
	case errors.As(err, &usage), errors.As(err, &syntax):
		return exitUsage
	case errors.Is(err, manifest.ErrUntrusted), errors.Is(err, manifest.ErrTampered), errors.Is(err, manifest.ErrIncomplete),
		errors.As(err, &proof), errors.As(err, &fault):
		return exitUntrusted
	case errors.As(err, &secrets), errors.As(err, &export), errors.As(err, &preflight), errors.Is(err, manifest.ErrRollback), errors.Is(err, manifest.ErrSkipped), errors.Is(err, installer.ErrInstalled), errors.Is(err, installer.ErrBusy), errors.Is(err, backup.ErrLonger), errors.Is(err, wizard.ErrDeclined):
		return exitRefused
	case errors.Is(err, control.ErrUnreachable):
		return exitUnreachable
	case errors.As(err, &refusal):
		if code, ok := refusalStatus[refusal.Code]; ok {
			return code
		}
		return exitRefused
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	}
	return exitFailure
}

// refusalStatus maps the control socket's codes; an unknown one is refused.
var refusalStatus = map[string]int{
	"not_found": exitNotFound,
	"invalid":   exitUsage,
	"conflict":  exitRefused,
	"refused":   exitRefused,
	"internal":  exitFailure,
}
