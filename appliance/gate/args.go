package gate

import (
	"fmt"
	"strings"
)

// call is one command line of runc's, as far as it matters here.
// Source: runc's main.go, create.go, start.go, exec.go, kill.go, restore.go.
type call struct {
	args   []string // whole, without the program's name
	verb   string
	at     int               // where the verb stands
	global map[string]string // flags before it, of those that take a value
	local  map[string]string // and behind it
	id     string            // the first argument that is no flag
	rest   []string          // the others
}

// takeValue are the flags that are followed by a value. Unknown ones are taken
// for flags without: then what follows is the id, which exists nowhere, and
// runc or the supervisor say so.
var takeValue = map[string]string{
	"":        "log log-format root criu rootless",
	"create":  "bundle b console-socket pidfd-socket pid-file preserve-fds",
	"run":     "bundle b console-socket pidfd-socket pid-file preserve-fds",
	"restore": "bundle b console-socket image-path work-path manage-cgroups-mode pid-file empty-ns lsm-profile lsm-mount-context",
	"exec": "console-socket pidfd-socket cwd env e user u additional-gids g process p pid-file process-label apparmor cap c " +
		"preserve-fds cgroup",
	"update": "resources r period cpu-period quota cpu-quota cpu-burst shares cpu-share cpu-rt-period cpu-rt-runtime cpuset-cpus cpuset-mems " +
		"kernel-memory kernel-memory-tcp memory memory-reservation memory-swap pids-limit blkio-weight l3-cache-schema mem-bw-schema cpu-idle",
	"checkpoint": "image-path work-path parent-path page-server manage-cgroups-mode empty-ns status-fd",
}

// parse reads a command line. One without a verb, such as --version, has none.
func parse(args []string) (*call, error) {
	c := &call{args: args}
	var n int
	var err error
	if c.global, n, err = flags(args, takeValue[""]); err != nil {
		return nil, err
	}
	if n == len(args) {
		return c, nil
	}
	c.verb, c.at = args[n], n
	more := args[n+1:]
	var words []string
	c.local = map[string]string{}
	for len(more) > 0 {
		m, n, err := flags(more, takeValue[c.verb])
		if err != nil {
			return nil, err
		}
		for k, v := range m {
			c.local[k] = v
		}
		if more = more[n:]; len(more) == 0 {
			break
		}
		words, more = append(words, more[0]), more[1:]
		if c.verb == "exec" { // behind the id stands a command line of its own
			break
		}
	}
	if len(words) > 0 {
		c.id, c.rest = words[0], words[1:]
	}
	return c, nil
}

// flags reads flags up to the first other word, and says how many words those
// were.
func flags(args []string, valued string) (map[string]string, int, error) {
	m := map[string]string{}
	for i := 0; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "-")
		if !ok || name == "" {
			return m, i, nil
		}
		name = strings.TrimPrefix(name, "-")
		if name == "" { // "--" ends them
			return m, i + 1, nil
		}
		k, v, given := strings.Cut(name, "=")
		switch {
		case given:
			m[k] = v
		case strings.Contains(" "+valued+" ", " "+k+" "):
			if i++; i == len(args) {
				return nil, 0, fmt.Errorf("flag --%s stands without its value", k)
			}
			m[k] = args[i]
		default:
			m[k] = ""
		}
	}
	return m, len(args), nil
}

// bundle is where config.json lies.
func (c *call) bundle() string {
	for _, k := range []string{"bundle", "b"} {
		if v := c.local[k]; v != "" {
			return v
		}
	}
	return "."
}

// preserving is the command line with more descriptors for the container.
func (c *call) preserving(n int) []string {
	out := append([]string{}, c.args[:c.at+1]...)
	out = append(out, fmt.Sprintf("--preserve-fds=%d", n))
	return append(out, c.args[c.at+1:]...)
}
