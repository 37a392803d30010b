package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kernel is one that QEMU can boot: vmlinux uncompressed, which spares the
// guest the slowest part of its boot, and the modules beside it.
type Kernel struct {
	Series  Series
	Release string // as `uname -r` prints it
	Image   string // path of the vmlinux
	modules string // folder
}

// Kernel fetches and unpacks a kernel, once.
func (c Cache) Kernel(ctx context.Context, s Series) (Kernel, error) {
	k, err := c.kernel(ctx, s)
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel %s: %w", s.Name, err)
	}
	return k, nil
}

func (c Cache) kernel(ctx context.Context, s Series) (Kernel, error) {
	dir, err := c.unpacked(ctx, s)
	if err != nil {
		return Kernel{}, err
	}
	k, err := kernelIn(ctx, dir, filepath.Join(dir, "vmlinux"))
	k.Series = s
	return k, err
}

// kernelIn finds the one kernel of a file system at dir, and puts it uncompressed
// at image.
func kernelIn(ctx context.Context, dir, image string) (Kernel, error) {
	found, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return Kernel{}, fmt.Errorf("got %q in %s, want one vmlinuz (%v)", found, dir, err)
	}
	release := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	k := Kernel{Release: release, Image: image}
	for _, d := range []string{"lib/modules", "usr/lib/modules"} {
		if m := filepath.Join(dir, d, release); isDir(m) {
			k.modules = m
		}
	}
	if _, err := os.Stat(k.Image); err == nil {
		return k, nil
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		return Kernel{}, err
	}
	if b, err = vmlinux(ctx, b); err != nil {
		return Kernel{}, err
	}
	return k, os.WriteFile(k.Image, b, 0o644)
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// vmlinux takes the kernel out of a bzImage: the setup header of the kernel's
// Documentation/arch/x86/boot.rst tells where the compressed payload stands.
// Its last four bytes are the size of the uncompressed kernel.
func vmlinux(ctx context.Context, b []byte) ([]byte, error) {
	const setupSects, magic, payload, length = 0x1f1, 0x202, 0x248, 0x24c
	if len(b) < 0x260 || string(b[magic:magic+4]) != "HdrS" {
		return nil, errors.New("got no bzImage: the setup header's magic is missing")
	}
	start := (int(b[setupSects])+1)*512 + int(binary.LittleEndian.Uint32(b[payload:]))
	end := start + int(binary.LittleEndian.Uint32(b[length:]))
	if start >= end || end > len(b) {
		return nil, fmt.Errorf("got a payload from %d to %d in a bzImage of %d bytes", start, end, len(b))
	}
	return decompress(ctx, b[start:end])
}

// packers are the host's programs that undo a compression, by its magic.
var packers = []struct{ magic, program string }{
	{"\xfd7zXZ\x00", "xz"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"\x1f\x8b", "gzip"},
}

// decompress gives b as it is when it is not compressed.
func decompress(ctx context.Context, b []byte) ([]byte, error) {
	for _, p := range packers {
		if !strings.HasPrefix(string(b[:min(len(b), 8)]), p.magic) {
			continue
		}
		cmd := exec.CommandContext(ctx, p.program, "-dcq")
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), &out, &errs
		err := cmd.Run()
		// A kernel's payload ends with its size, which is no part of the
		// stream: the programs say so after having written everything.
		if err != nil && !bytes.HasPrefix(out.Bytes(), []byte(elf.ELFMAG)) {
			return nil, fmt.Errorf("%s: %w: %s", p.program, err, errs.Bytes())
		}
		return out.Bytes(), nil
	}
	return b, nil
}

// Modules gives the named modules and what they depend on, dependencies first,
// uncompressed. A name that is no module of this kernel is built in, or absent:
// the guest says which.
func (k Kernel) Modules(ctx context.Context, names ...string) ([][]byte, error) {
	files, err := k.moduleFiles()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || files[name] == "" {
			return nil
		}
		seen[name] = true
		b, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		if b, err = decompress(ctx, b); err != nil {
			return err
		}
		deps, err := dependencies(b)
		if err != nil {
			return fmt.Errorf("%s: %w", files[name], err)
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, b)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleFiles maps each module's name to its file.
func (k Kernel) moduleFiles() (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(k.modules, func(p string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(p), ".ko"); ok && err == nil && d.Type().IsRegular() {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no modules below %q", k.modules)
	}
	return files, err
}

// dependencies reads what a module says about itself: "depends", and the soft
// dependencies that must be there before it.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for line := range strings.SplitSeq(string(b), "\x00") {
		if d, ok := strings.CutPrefix(line, "depends="); ok && d != "" {
			deps = append(deps, strings.Split(d, ",")...)
		}
		if d, ok := strings.CutPrefix(line, "softdep=pre: "); ok {
			d, _, _ = strings.Cut(d, "post:")
			deps = append(deps, strings.Fields(d)...)
		}
	}
	return deps, nil
}
