package vm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Disk makes an ext4 image of the folder root at to, with room for free MiB
// more. Files belong to who owns them in the folder.
func Disk(ctx context.Context, to, root string, free int) error {
	var n int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if st, err := d.Info(); err == nil {
			n += (st.Size() + 8191) &^ 4095
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
		return err
	}
	mib := n>>20 + int64(free) + 32
	_, err = tool(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-N", "262144", "-d", root, to, fmt.Sprintf("%dM", mib))
	return err
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// Lend copies a program of the host and its libraries below root, to the same
// paths. Links are followed: the guest gets the files themselves.
func Lend(ctx context.Context, root, program string) error {
	files := []string{program}
	if out, err := tool(ctx, "", "ldd", program); err == nil { // a static program or a script has none
		for _, m := range library.FindAllStringSubmatch(out, -1) {
			files = append(files, m[1])
		}
	}
	for _, f := range files {
		if err := Copy(f, filepath.Join(root, f)); err != nil {
			return err
		}
	}
	return nil
}

// Copy copies one file with its permissions, making the folders above.
func Copy(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, st.Mode().Perm())
}
