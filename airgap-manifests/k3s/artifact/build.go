package artifact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// build compiles a part unless it is there already.
func (b *builder) build(p part) error {
	key, err := b.key(p)
	if err != nil {
		return err
	}
	dir := b.dir(p.name)
	return b.once(p.name, key, func() error {
		for _, g := range p.progs {
			args := []string{
				"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-tags", strings.Join(p.tags, ","),
				"-ldflags", strings.Join(append([]string{"-s", "-w", "-buildid="}, p.ld...), " "), "-o", filepath.Join(dir, g.out), g.pkg,
			}
			if _, err := b.goTool(p.module, p.env, args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// once calls fill with an empty folder for the part, unless the folder holds what an
// earlier fill with this key left. The file .key, written last, says both.
func (b *builder) once(name, key string, fill func() error) error {
	dir := b.dir(name)
	if have, err := os.ReadFile(filepath.Join(dir, ".key")); err == nil {
		if sum, err := contents(dir); err == nil && string(have) == key+" "+sum+"\n" {
			return nil
		}
	}
	fmt.Fprintf(b.Log, "artifact: building %s\n", name)
	start := time.Now()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := fill(); err != nil {
		return err
	}
	sum, err := contents(dir)
	if err != nil {
		return err
	}
	took := time.Since(start)
	b.report.Built, b.report.Took = append(b.report.Built, name), append(b.report.Took, took)
	fmt.Fprintf(b.Log, "artifact: built %s in %v\n", name, took.Round(time.Second))
	return os.WriteFile(filepath.Join(dir, ".key"), []byte(key+" "+sum+"\n"), 0o644)
}

// key hashes what decides a part's bytes.
func (b *builder) key(p part) (string, error) {
	h := sha256.New()
	root := filepath.Join(b.Modules, p.module)
	err := filepath.WalkDir(root, func(f string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(f, "_test.go") {
			return err
		}
		return hashFile(h, f)
	})
	if err != nil {
		return "", err
	}
	tools, err := b.goTool(p.module, nil, "env", "GOVERSION", "GOOS", "GOARCH", "GOAMD64", "GOEXPERIMENT")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%s %v %q %q %q", tools, p.progs, p.tags, p.ld, p.env)
	if p.cgo() {
		if err := b.hashCompiler(h, p.libs); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashCompiler adds the C compiler's version and the libraries that it links.
func (b *builder) hashCompiler(h io.Writer, libs []string) error {
	ver, err := exec.CommandContext(b.ctx, "gcc", "-dumpfullversion").Output()
	if err != nil {
		return fmt.Errorf("gcc: %w; run: apt-get install build-essential", err)
	}
	h.Write(ver)
	for _, l := range append([]string{"libc.a"}, libs...) {
		out, err := exec.CommandContext(b.ctx, "gcc", "-print-file-name="+l).Output()
		if err != nil {
			return err
		}
		file := strings.TrimSpace(string(out))
		if !filepath.IsAbs(file) {
			return fmt.Errorf("the C library %s is not installed; run: apt-get install libc6-dev libseccomp-dev pkg-config", l)
		}
		if err := hashFile(h, file); err != nil {
			return err
		}
	}
	return nil
}

// contents hashes a folder: names, modes, links and bytes; .key is left out.
func contents(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(f string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == ".key" {
			return err
		}
		rel, _ := filepath.Rel(dir, f) // it is below dir
		fmt.Fprintf(h, "%q %v ", rel, d.Type())
		return hashFile(h, f)
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// hashFile adds a file's length and bytes.
func hashFile(h io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%d:", fi.Size())
	_, err = io.Copy(h, f)
	return err
}

// goTool runs the go command in a nested module and returns what it printed; its
// complaints go into the error.
func (b *builder) goTool(nested string, env []string, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(b.ctx, "go", args...)
	cmd.Dir = filepath.Join(b.Modules, nested)
	cmd.Env = slices.Concat(os.Environ(), []string{"GOWORK=off", "GOFLAGS="}, env)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		said := errs.String()
		return nil, fmt.Errorf("go %s in %s: %w\n%s", args[0], nested, err, said[max(0, len(said)-3000):])
	}
	return out.Bytes(), nil
}
