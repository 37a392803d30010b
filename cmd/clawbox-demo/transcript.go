package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// transcript prints what happens as a person would want to read it, and keeps
// the time that each phase took.
type transcript struct {
	w      io.Writer
	phases []phase
	start  time.Time
}

type phase struct {
	title string
	took  time.Duration
}

// phase runs one part of the demo under a heading. An error ends the demo.
func (t *transcript) phase(title string, f func() error) {
	fmt.Fprintf(t.w, "\n━━ %d. %s\n", len(t.phases)+1, title)
	begin := time.Now()
	if err := f(); err != nil {
		fmt.Fprintf(t.w, "\nDEMO FAILED in %q: %v\n", title, err)
		panic(failed{})
	}
	t.phases = append(t.phases, phase{title, time.Since(begin)})
}

// failed unwinds to main, so that what was started is stopped.
type failed struct{}

// say prints one line of explanation.
func (t *transcript) say(format string, a ...any) { fmt.Fprintf(t.w, "   "+format+"\n", a...) }

// summary prints the phases' times.
func (t *transcript) summary() {
	fmt.Fprintf(t.w, "\n━━ Times\n")
	for _, p := range t.phases {
		fmt.Fprintf(t.w, "   %7.1f s  %s\n", p.took.Seconds(), p.title)
	}
	fmt.Fprintf(t.w, "   %7.1f s  in all\n", time.Since(t.start).Seconds())
}

// result is what a finished command left.
type result struct {
	out  string // standard output and standard error together
	code int
	took time.Duration
}

// run shows a command and its output, and returns what it left. A status
// other than 0 is not an error here: the callers know what they expect.
func (t *transcript) run(name string, args ...string) (result, error) {
	fmt.Fprintf(t.w, "   $ %s\n", shell(name, args))
	r, err := capture(name, args...)
	t.show(r.out, 24)
	return r, err
}

// capture runs a command silently.
func capture(name string, args ...string) (result, error) {
	var b bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &b, &b
	begin := time.Now()
	err := cmd.Run()
	r := result{out: b.String(), took: time.Since(begin)}
	if cmd.ProcessState == nil {
		return r, fmt.Errorf("%s did not start: %w", name, err)
	}
	r.code = cmd.ProcessState.ExitCode()
	return r, nil
}

// show prints output indented, at most limit lines of it.
func (t *transcript) show(out string, limit int) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	for i, l := range lines {
		if i == limit {
			fmt.Fprintf(t.w, "     … %d more lines\n", len(lines)-limit)
			return
		}
		if l != "" {
			fmt.Fprintf(t.w, "     %s\n", l)
		}
	}
}

// must runs a command that has to succeed.
func (t *transcript) must(name string, args ...string) (string, error) {
	r, err := t.run(name, args...)
	if err == nil && r.code != 0 {
		err = fmt.Errorf("%s ended with status %d", shell(name, args), r.code)
	}
	return r.out, err
}

// mustFail runs a command that has to end with status code and say want.
func (t *transcript) mustFail(code int, want, name string, args ...string) error {
	r, err := t.run(name, args...)
	switch {
	case err != nil:
		return err
	case r.code != code:
		return fmt.Errorf("%s ended with status %d, want %d", shell(name, args), r.code, code)
	case !strings.Contains(r.out, want):
		return fmt.Errorf("%s did not say %q", shell(name, args), want)
	}
	return nil
}

// shell quotes a command as one would type it.
func shell(name string, args []string) string {
	words := []string{name[strings.LastIndexByte(name, '/')+1:]}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"$&;|<>(){}*") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// exists says whether a path is there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
