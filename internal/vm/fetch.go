package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Cache is a folder that keeps what was downloaded and built. One process at a
// time may fill it.
type Cache string

// Series is a line of kernels in a Debian suite. The newest of the suite is
// taken: the archive keeps no older ones, so a version cannot be pinned.
type Series struct {
	Name  string // what `uname -r` begins with
	Suite string // for apt-get's -t; "": the suites' ordinary order
}

// Kernels lists what the archive of Debian 12 offers. Ubuntu's 5.15 and 6.8
// are in no Debian suite.
var Kernels = []Series{
	{Name: "6.1"},
	{Name: "6.12", Suite: "bookworm-backports"},
}

// sources are the suites that packages come from. The key ring is Debian's own.
const sources = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
`

func (c Cache) path(names ...string) string {
	return filepath.Join(append([]string{string(c)}, names...)...)
}

// tool runs a program of the host and gives what it printed.
func tool(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	return out.String(), nil
}

// apt runs apt-get or apt-cache with the cache's own configuration, lists and
// archives. The host's status file tells which libraries are here already.
func (c Cache) apt(ctx context.Context, dir, program string, args ...string) (string, error) {
	root, err := filepath.Abs(c.path("apt"))
	if err != nil {
		return "", err
	}
	for _, d := range []string{"etc/sources.list.d", "etc/apt.conf.d", "etc/preferences.d", "lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	list := filepath.Join(root, "etc/sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return "", err
	}
	opts := []string{"-qq"}
	for _, o := range []string{
		"Dir::Etc=" + root + "/etc", "Dir::Etc::sourcelist=" + list, "Dir::Etc::sourceparts=" + root + "/etc/sources.list.d",
		"Dir::Etc::parts=" + root + "/etc/apt.conf.d", "Dir::State::lists=" + root + "/lists", "Dir::Cache=" + root + "/cache",
		"APT::Sandbox::User=root", "APT::Architecture=amd64", "Debug::NoLocking=true",
	} {
		opts = append(opts, "-o", o)
	}
	return tool(ctx, dir, program, append(opts, args...)...)
}

// update fetches the archive's lists, once for the cache's life.
func (c Cache) update(ctx context.Context) error {
	done := c.path("apt", "updated")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if _, err := c.apt(ctx, "", "apt-get", "update"); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o644)
}

// once makes the folder dir with f, which gets a temporary name: after an
// error nothing stays under the final one.
func once(dir string, f func(tmp string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	if err := f(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, dir)
}

var imageName = regexp.MustCompile(`Depends: (linux-image-[0-9]\S+)`)

// unpacked gives the folder with the files of the newest kernel package of s.
func (c Cache) unpacked(ctx context.Context, s Series) (string, error) {
	dir := c.path("kernel-" + s.Name)
	return dir, once(dir, func(tmp string) error {
		if err := c.update(ctx); err != nil {
			return err
		}
		suite := []string{"depends", "linux-image-amd64"}
		if s.Suite != "" {
			suite = append(suite, "-t", s.Suite)
		}
		out, err := c.apt(ctx, "", "apt-cache", suite...)
		if err != nil {
			return err
		}
		m := imageName.FindStringSubmatch(out)
		if m == nil || !strings.HasPrefix(m[1], "linux-image-"+s.Name+".") {
			return fmt.Errorf("got %q from the archive for kernel %s, want a package linux-image-%s.*; does the suite still carry that series?", out, s.Name, s.Name)
		}
		return c.unpack(ctx, tmp, "download", m[1])
	})
}

// unpack lets apt-get fetch packages, with the given arguments, and unpacks
// them into dir. apt-get has checked their hashes.
func (c Cache) unpack(ctx context.Context, dir string, args ...string) error {
	debs, err := filepath.Abs(filepath.Join(dir, "deb"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(debs, "partial"), 0o755); err != nil {
		return err
	}
	keep := []string{"-o", "Dir::Cache::archives=" + debs, "-o", "APT::Keep-Downloaded-Packages=true"}
	if _, err := c.apt(ctx, debs, "apt-get", append(keep, args...)...); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("apt-get %s left no package in %s (%v)", strings.Join(args, " "), debs, err)
	}
	for _, f := range found {
		if _, err := tool(ctx, "", "dpkg-deb", "-x", f, dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(debs)
}

// Emulator is a QEMU that can be started.
type Emulator struct {
	Program string
	Env     []string // to find its libraries
	Args    []string // to find its firmware
}

// oldest is the first QEMU that booted every kernel here in every try; 7.2
// crashes 6.12 under TCG.
const oldest = 10

var version = regexp.MustCompile(`version (\d+)\.`)

// Emulator gives the host's QEMU when it is new enough, or else Debian's from
// the backports, with the libraries that this host lacks, unpacked below the
// cache.
func (c Cache) Emulator(ctx context.Context) (Emulator, error) {
	if p, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		out, err := tool(ctx, "", p, "--version")
		if m := version.FindStringSubmatch(out); err == nil && m != nil {
			if n, _ := strconv.Atoi(m[1]); n >= oldest {
				return Emulator{Program: p}, nil
			}
		}
	}
	dir := c.path("qemu")
	if err := once(dir, func(tmp string) error { return c.unpackEmulator(ctx, tmp) }); err != nil {
		return Emulator{}, fmt.Errorf("QEMU %d or newer from the backports: %w", oldest, err)
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return Emulator{}, err
	}
	return Emulator{
		Program: root + "/usr/bin/qemu-system-x86_64",
		Env:     []string{"LD_LIBRARY_PATH=" + root + "/usr/lib/x86_64-linux-gnu:" + root + "/lib/x86_64-linux-gnu", "QEMU_MODULE_DIR=" + root + "/usr/lib/x86_64-linux-gnu/qemu"},
		Args:    []string{"-L", root + "/usr/share/seabios", "-L", root + "/usr/share/qemu"},
	}, nil
}

func (c Cache) unpackEmulator(ctx context.Context, dir string) error {
	if err := c.update(ctx); err != nil {
		return err
	}
	return c.unpack(ctx, dir, "install", "-t", "bookworm-backports", "--download-only", "--no-install-recommends", "-y", "qemu-system-x86", "seabios")
}
