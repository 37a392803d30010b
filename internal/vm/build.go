package vm

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Build compiles a program of this repository for a guest, with more flags for go
// build: without cgo, because a guest has no C library but one that was lent.
func Build(ctx context.Context, to, pkg string, flags ...string) error {
	return compile(ctx, to, pkg, append([]string{"build", "-trimpath"}, flags...))
}

// BuildTest does so with a package's tests.
func BuildTest(ctx context.Context, to, pkg string) error {
	return compile(ctx, to, pkg, []string{"test", "-c"})
}

func compile(ctx context.Context, to, pkg string, args []string) error {
	abs, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	args = append(args, "-o", abs, pkg)
	c := exec.CommandContext(ctx, "go", args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// tools are the host's programs that this package runs, with the Debian package
// of each.
var tools = map[string]string{"apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "xz": "xz-utils", "zstd": "zstd"}

// Missing lists the Debian packages of those programs that the host lacks: of the
// ones given, a package by each program's name, and of this package's own.
func Missing(more map[string]string) (packages []string) {
	for _, needed := range []map[string]string{tools, more} {
		for _, program := range slices.Sorted(maps.Keys(needed)) {
			if _, err := exec.LookPath(program); err != nil {
				packages = append(packages, needed[program])
			}
		}
	}
	return packages
}
