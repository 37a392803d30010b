package confine

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Descriptors of a launcher in a container that a runtime has made: control
// and Spec as for init, and the agent's output.
const (
	outFD = 5
	errFD = 6
)

// Exited begins the line that PID 1 of a container ends its control channel
// with, before the program's exit status: nobody waits for it but a runtime.
const Exited = "exit "

// inContainer is the first process of a container whose namespaces, mounts and
// cgroups a runtime has made, by the daemon's word. It needs the capabilities
// setuid, setgid, setpcap and kill, and dac_read_search to walk to what the Spec
// names; it gives them up as init does. On control it reads the Spec that
// confines itself, in place of a Root; everything behind it is init's way.
//
// It does not ask for a parent death signal: its parent is the runtime's shim,
// of which single threads may end. The control channel tells of the daemon.
func inContainer([]string) (int, error) {
	ctl := os.NewFile(controlFD, "control")
	for fd, std := range map[int]int{outFD: 1, errFD: 2} {
		if err := unix.Dup3(fd, std, 0); err != nil {
			return 0, fmt.Errorf("output: %w", err)
		}
		unix.Close(fd)
	}
	// What the runtime gave for standard input is the host's.
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Dup3(null, 0, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("input: %w", err)
	}
	unix.Close(null)
	unix.Umask(0o022)
	spareThreads(2)
	var self Spec
	if err := receive(ctl, &self); err != nil {
		return 0, fmt.Errorf("read PID 1's spec: %w", err)
	}
	self.Args = []string{"/launcher"} // executes nothing
	if err := self.Validate(); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(ctl, Mounted); err != nil {
		return 0, err
	}
	pid, err := begin(&self, 0)
	if err != nil {
		// Whoever waits for the agent reads the other channel.
		fmt.Fprintf(os.NewFile(specFD, "spec"), "error: pod: %v\n", err)
		return ExitFailed, nil
	}
	code, err := supervise(ctl, pid)
	if err == nil {
		_, err = fmt.Fprintf(ctl, "%s%d\n", Exited, code)
	}
	return code, err
}

// Masked lists the parts of /proc that a sandbox does not show.
func Masked() (out []string) {
	for _, m := range masked {
		out = append(out, "/proc/"+m)
	}
	return out
}
