package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bare is the control's container: this process has namespaces of its own for
// mounts, processes and IPC, root's capabilities, no filter, no Landlock, no
// limits, and the host's network. It makes a root like the sandbox's from the
// folder args[0], shows the folders of args[1] in it where the host has them,
// and execs the attack. The root is a copy in memory: what an attack does to it
// is gone with it.
func bare(args []string) error {
	image, show, rest := args[0], args[1], args[2:]
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	root, err := spare(image)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
	}{
		{"proc", "/proc", "proc", 0},
		{"/sys", "/sys", "", unix.MS_BIND | unix.MS_REC},
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC},
		{"tmpfs", "/tmp", "tmpfs", 0},
		{"tmpfs", "/workspace", "tmpfs", 0},
		{show, show, "", unix.MS_BIND | unix.MS_REC},
	} {
		to := filepath.Join(root, m.to)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.from, to, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/workspace"); err != nil {
		return err
	}
	return unix.Exec("/bin/attack", append([]string{"attack"}, rest...), os.Environ())
}

// spare copies the image's tree into memory.
func spare(image string) (string, error) {
	root := image + ".spare"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return "", fmt.Errorf("memory for the copy: %w", err)
	}
	return root, os.CopyFS(root, os.DirFS(image))
}
