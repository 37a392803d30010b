package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// frozen says whether the group's processes are held still: the guard does that
// when they cause more records than the ledger takes.
func (g *group) frozen() (bool, error) {
	n, err := field(filepath.Join(g.dir(), "cgroup.events"), "frozen")
	return n == 1, err
}

// Stats is what a sandbox uses at this moment.
type Stats struct {
	Tasks  int64         // processes and threads, the launcher's included
	Memory int64         // bytes, page cache included
	CPU    time.Duration // since the start
}

func (g *group) stats() (Stats, error) {
	mem := "memory.current"
	if g.h.v1["memory"] != "" {
		mem = "memory.usage_in_bytes"
	}
	var s Stats
	var err, errs error
	s.Tasks, errs = number(g.file("pids", "pids.current"))
	s.Memory, err = number(g.file("memory", mem))
	errs = errors.Join(errs, err)
	// cpu.stat's times exist in every v2 cgroup, with or without controller.
	us, err := field(filepath.Join(g.dir(), "cpu.stat"), "usage_usec")
	s.CPU = time.Duration(us) * time.Microsecond
	return s, errors.Join(errs, err)
}

// strikes counts how often a budget was hit since the start.
type strikes struct{ tasks, memory int64 }

func (g *group) strikes() (s strikes, err error) {
	oom := "memory.events"
	if g.h.v1["memory"] != "" {
		oom = "memory.oom_control"
	}
	var e error
	s.tasks, err = field(g.file("pids", "pids.events"), "max")
	s.memory, e = field(g.file("memory", oom), "oom_kill")
	return s, errors.Join(err, e)
}

func number(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// field reads the value behind key in a file of "key value" lines.
func field(file, key string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no line %q", file, key)
}
