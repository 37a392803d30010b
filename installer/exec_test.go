package installer

import (
	"os"
	"os/exec"
)

func commandFor(exe, root, kill string) *exec.Cmd {
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), "CLAWBOX_TEST_ROOT="+root, "CLAWBOX_TEST_KILL="+kill)
	return cmd
}
