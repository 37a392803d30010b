// Command inside is the attacker's half of clawbox-attack: one static program
// with a subcommand per attack, which runs in a sandbox or, for the control
// run, in a container that confines nothing. It prints one line,
//
//	ATTACK {"ok":false,"errnos":["EACCES"],"say":"open /secret/flag: permission denied"}
//
// where ok means that the attack succeeded. An attack that tries several ways
// succeeds if one of them does, and gives an errno for each.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// attacks are the subcommands; nil means that the attack succeeded.
var attacks = map[string]func(args []string) error{}

// register adds the attacks of one file.
func register(m map[string]func(args []string) error) bool {
	for name, f := range m {
		if attacks[name] != nil {
			panic("two attacks are called " + name)
		}
		attacks[name] = f
	}
	return true
}

// report is what the line says.
type report struct {
	OK     bool     `json:"ok"`
	Errnos []string `json:"errnos,omitempty"`
	Say    string   `json:"say,omitempty"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "want the name of an attack and its arguments")
		os.Exit(2)
	}
	name, args := os.Args[1], os.Args[2:]
	switch name {
	case "canary": // a program that ran says so
		fmt.Println("CANARY")
		return
	case "bare":
		fmt.Fprintln(os.Stderr, bare(args))
		os.Exit(2)
	case "sleep":
		select {}
	}
	f := attacks[name]
	if f == nil {
		fmt.Fprintln(os.Stderr, "no attack is called", name)
		os.Exit(2)
	}
	err := f(args)
	r := report{OK: err == nil, Errnos: errnos(err)}
	if err != nil {
		r.Say = err.Error()
	}
	b, _ := json.Marshal(r)
	fmt.Printf("ATTACK %s\n", b)
}

// errnos collects the errno or signal of each way that was tried.
func errnos(err error) []string {
	var out []string
	if m, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range m.Unwrap() {
			out = append(out, errnos(e)...)
		}
		return out
	}
	var no syscall.Errno
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee) && ee.Sys().(syscall.WaitStatus).Signaled():
		return []string{unix.SignalName(ee.Sys().(syscall.WaitStatus).Signal())}
	case errors.As(err, &no):
		return []string{unix.ErrnoName(no)}
	}
	return nil
}

// oneOf is for an attack that has several ways: nil if one of them works.
func oneOf(ways ...func() error) error {
	var errs []error
	for _, w := range ways {
		err := w()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// call is one system call with its name in the error. Arguments are integers,
// strings or pointers made by the caller.
func call(name string, nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, no := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); no != 0 {
		return fmt.Errorf("%s: %w", name, no)
	}
	return nil
}

// steal succeeds when a file that is the host's, or listed nowhere, is read.
func steal(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return fmt.Errorf("%s is empty: %w", path, syscall.ENODATA)
	}
	return nil
}
