package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// makeRoot fills dir with the file system that every place uses: busybox, the
// probe, git with its libraries, and the Go toolchain that runs this.
func makeRoot(ctx context.Context, dir string) (left []string, err error) {
	for _, d := range []string{"bin", "data", "dev", "etc", "proc", "sys", "tmp", "unlisted", "usr/bin", "usr/local", "workspace"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{"data/file": strings.Repeat("x", 64), "etc/passwd": "root:x:0:0::/workspace:/bin/sh\n"}
	for name, s := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			return nil, err
		}
	}
	if err := devices(dir); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "bin/probe"), "./cmd/clawbox-bench/testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the probe, which wants the repository's root as working folder: %w: %s", err, out)
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: install busybox-static", err)
	}
	err = errors.Join(copyFile(box, dir+"/bin/busybox"), copyFile(box, dir+"/unlisted/busybox"), copyGo(ctx, dir))
	if err == nil {
		left, err = copyGit(ctx, dir)
	}
	return left, err
}

// devices are for the places that mount no /dev of their own.
func devices(dir string) error {
	for name, dev := range map[string][2]uint32{"null": {1, 3}, "zero": {1, 5}, "urandom": {1, 9}} {
		p := filepath.Join(dir, "dev", name)
		if err := unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(dev[0], dev[1]))); err != nil {
			return fmt.Errorf("mknod %s: %w", p, err)
		}
		if err := os.Chmod(p, 0o666); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a program to where it was on the host, or to another place.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// copyGo takes what building a program of the standard library needs.
func copyGo(ctx context.Context, dir string) error {
	b, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	root := strings.TrimSpace(string(b))
	return filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case e.IsDir() && (e.Name() == "testdata" || unneeded[rel] || strings.HasPrefix(rel, "pkg/") && rel != "pkg/include" && !strings.HasPrefix(rel, "pkg/tool")):
			return filepath.SkipDir
		case e.IsDir() || !e.Type().IsRegular() || strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		return copyFile(p, filepath.Join(dir, "usr/local/go", rel))
	})
}

// unneeded are folders of GOROOT that no build reads.
var unneeded = map[string]bool{"api": true, "doc": true, "misc": true, "test": true, "src/cmd": true, ".git": true}

// copyGit takes git and the libraries that its loader names.
func copyGit(ctx context.Context, dir string) ([]string, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return []string{"git is not installed"}, nil
	}
	if git, err = filepath.EvalSymlinks(git); err != nil {
		return nil, err
	}
	b, err := exec.CommandContext(ctx, "ldd", git).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", git, err)
	}
	for f := range strings.FieldsSeq(string(b)) {
		if strings.HasPrefix(f, "/") {
			if err := copyFile(f, filepath.Join(dir, f)); err != nil {
				return nil, err
			}
		}
	}
	return nil, copyFile(git, filepath.Join(dir, "usr/bin/git"))
}
