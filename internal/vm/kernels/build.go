package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/internal/vm"
)

// built is what the guests boot with.
type built struct{ init, disk string }

// build compiles the tests and programs and makes the disk, all in dir.
func build(ctx context.Context, o options, dir string) (built, error) {
	root := filepath.Join(dir, "root")
	b := built{init: filepath.Join(dir, "guest"), disk: filepath.Join(dir, "disk")}
	if err := skeleton(root); err != nil {
		return b, err
	}
	if err := vm.Build(ctx, b.init, "./internal/vm/guest"); err != nil {
		return b, err
	}
	if err := vm.Build(ctx, filepath.Join(root, "kernel-probe"), "./"+prober); err != nil {
		return b, err
	}
	for _, s := range suites {
		if strings.Contains(s.pkg, o.pkg) {
			if err := placeTests(ctx, root, s); err != nil {
				return b, err
			}
		}
	}
	if err := userland(ctx, root); err != nil {
		return b, err
	}
	return b, vm.Disk(ctx, b.disk, root, 2048)
}

// skeleton makes the folders and files of a Debian host with merged /usr.
func skeleton(root string) error {
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "run", "root", "tmp", "var/tmp", "etc", "programs", "src"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, d), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// placeTests puts a package's test binary, testdata and sources where the tests
// expect to be started: in the package's folder.
func placeTests(ctx context.Context, root string, s suite) error {
	dir := filepath.Join(root, "src", s.pkg)
	if err := vm.BuildTest(ctx, filepath.Join(dir, "it.test"), "./"+s.pkg); err != nil {
		return err
	}
	for _, p := range s.programs {
		if err := vm.Build(ctx, filepath.Join(root, "programs", filepath.Base(p)), "./"+p); err != nil {
			return err
		}
	}
	sources, err := filepath.Glob(s.pkg + "/*.go")
	if err != nil {
		return err
	}
	for _, f := range sources { // some tests hold a table against them
		if err := vm.Copy(f, filepath.Join(root, "src", f)); err != nil {
			return err
		}
	}
	data := filepath.Join(s.pkg, "testdata")
	if _, err := os.Stat(data); err != nil {
		return nil // most have none
	}
	return os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS(data))
}

// userland lends the host's programs and fills up with busybox.
func userland(ctx context.Context, root string) error {
	for _, name := range lent {
		p, err := exec.LookPath(name)
		if err != nil {
			fmt.Fprintf(os.Stderr, "test-kernels: this host has no %s to lend\n", name)
			continue
		}
		if err := vm.Lend(ctx, root, p); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	list, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("busybox --list-full: %w", err)
	}
	for _, l := range strings.Fields(string(list)) {
		to := filepath.Join(root, l)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(busybox, to); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}
