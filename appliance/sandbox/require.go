package sandbox

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// demands are what a policy's require.features can name, each with what this
// host must show. A name that is not here is refused: a newer policy language
// must not meet an older sandbox that shrugs.
var demands = map[string]func(*Local, *Spec) error{
	"cgroup2": func(l *Local, _ *Spec) error {
		if len(l.h.v1) > 0 || !l.h.io {
			return errors.New("controllers are in cgroup v1 hierarchies; boot with systemd.unified_cgroup_hierarchy=1")
		}
		return nil
	},
	"disk-rate": func(l *Local, _ *Spec) error {
		if !l.h.io {
			return errors.New("the cgroup v2 controller io is missing; boot with cgroup v2")
		}
		return nil
	},
	"disk-quota": func(*Local, *Spec) error {
		if !exists("/dev/loop-control") {
			return errors.New("there are no loop devices; load the module loop")
		}
		return tool("mke2fs", "-V")
	},
	"exec-deny": func(_ *Local, s *Spec) error {
		if s.Tier != "T1" && s.Tier != "T2" {
			return fmt.Errorf("the guard's tier is %q; want T1 or T2, see docs/kernels.md", s.Tier)
		}
		return nil
	},
	"memfd-noexec": func(*Local, *Spec) error {
		if !exists("/proc/sys/vm/memfd_noexec") {
			return errors.New("the kernel has no vm.memfd_noexec; use 6.3 or newer")
		}
		return nil // the launcher sets it, or fails
	},
}

// meets says whether this host has what the policy requires of it; the
// guard's tier is the caller's to compare.
func (l *Local) meets(s *Spec) error {
	r := s.Policy.Require
	if l.abi < r.Landlock {
		return fmt.Errorf("policy %s requires Landlock ABI %d, this kernel has %d; use a newer kernel or lower require.landlock", s.Policy.Name, r.Landlock, l.abi)
	}
	if r.Kernel != "" {
		have, err := kernelRelease()
		if err != nil {
			return err
		}
		if older(have, r.Kernel) {
			return fmt.Errorf("policy %s requires kernel %s, this is %s; use a newer one or lower require.kernel", s.Policy.Name, r.Kernel, have)
		}
	}
	for _, f := range r.Features {
		show, ok := demands[f]
		if !ok {
			return fmt.Errorf("policy %s requires feature %q, which this release cannot show; remove it from require.features or upgrade", s.Policy.Name, f)
		}
		if err := show(l, s); err != nil {
			return fmt.Errorf("policy %s requires feature %s: %w", s.Policy.Name, f, err)
		}
	}
	return nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// older compares the first two numbers of kernel releases.
func older(have, want string) bool {
	return number2(have) < number2(want)
}

func number2(release string) int {
	major, rest, _ := strings.Cut(release, ".")
	minor := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a*1000 + b
}
