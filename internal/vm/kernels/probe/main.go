// Command probe says, as JSON, what the running kernel gives for confining
// agents: the guard's tier, which its self-test proves, and features that are
// tried and not looked up by version. Run it as root, on any host.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
)

type facts struct {
	Tier, Why, LSM string
	Landlock       int
	Cgroup         string
	Features       map[string]string
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "userns" {
		if err := startInUserns(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	f := facts{LSM: read("/sys/kernel/security/lsm"), Cgroup: read("/sys/fs/cgroup/cgroup.controllers"), Features: map[string]string{}}
	f.Landlock = landlock()
	for name, try := range featureTests {
		f.Features[name] = try()
	}
	f.Features["lsm list"], f.Features["cgroup v2 controllers"] = f.LSM, f.Cgroup
	f.Features["landlock ABI"] = fmt.Sprint(f.Landlock)
	f.Tier, f.Why = tier()
	f.Features["guard tier"] = f.Tier
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	if err := e.Encode(f); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// landlock is the ABI; 0: none.
func landlock() int {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// tier loads the guard, which proves by a denial that it enforces.
func tier() (tier, why string) {
	g, err := guard.Load()
	if err != nil {
		return "error", err.Error()
	}
	defer g.Close()
	return string(g.Tier()), g.Why()
}
