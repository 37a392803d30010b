package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The skeleton is the topmost layer: a directory that holds the mount points
// and the few files of /etc that describe the sandbox instead of the image.

// user names an agent's account inside its sandbox.
const user = "agent"

// mountPoints exist in every sandbox.
var mountPoints = []string{"/proc", "/dev", "/tmp", "/etc"}

// makeSkeleton fills dir, which it creates, for an agent with uid whose
// writable directories are at writes.
func makeSkeleton(dir string, img Image, uid int, home string, writes []string) error {
	for _, p := range slices.Concat(mountPoints, writes) {
		if err := noLinks(img, p); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			return err
		}
	}
	for name, text := range etc(img, uid, home) {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return readable(dir)
}

// readable undoes the daemon's umask: these directories become the agent's
// view of / and /etc.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(p, 0o755)
		}
		return os.Chmod(p, 0o644)
	})
}

// noLinks refuses a mount point below a symbolic link of the image: the
// skeleton's directory would silently replace the link for every program.
func noLinks(img Image, p string) error {
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i := range parts {
		sub := path.Join(parts[:i+1]...)
		st, err := lstatIn(img.Layers, sub)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("writable path %s passes through /%s, a symbolic link in image %s; name the folder that it leads to", p, sub, img.Ref)
		}
	}
	return nil
}

// lstatIn finds the topmost layer that has p, never leaving a layer.
func lstatIn(layers []string, p string) (fs.FileInfo, error) {
	for _, l := range layers {
		root, err := os.OpenRoot(l)
		if err != nil {
			return nil, err
		}
		st, err := root.Lstat(p)
		root.Close()
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return st, err
		}
	}
	return nil, fs.ErrNotExist
}

// etc returns the files that are the sandbox's own. No resolver address is
// the host's: the appliance answers DNS inside the sandbox's loopback network.
func etc(img Image, uid int, home string) map[string]string {
	id := fmt.Sprintf("%d", uid)
	return map[string]string{
		"hostname":    user + "\n",
		"hosts":       "127.0.0.1 localhost " + user + "\n::1 localhost\n",
		"resolv.conf": "nameserver 127.0.0.53\noptions timeout:5 attempts:1 edns0\n",
		"passwd":      account(img, "passwd", id, strings.Join([]string{user, "x", id, id, user, home, "/bin/sh"}, ":")),
		"group":       account(img, "group", id, user+":x:"+id+":"),
	}
}

// account adds line to the image's own file, less entries that name the same
// account or number.
func account(img Image, file, id, line string) string {
	out := line + "\n"
	b, _ := readIn(img.Layers, "etc/"+file) // an image without accounts is fine
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) >= 3 && f[0] != user && f[2] != id {
			out += strings.Join(f, ":") + "\n"
		}
	}
	return out
}

// maxAccounts bounds an image's passwd and group files, in bytes.
const maxAccounts = 1 << 20

// readIn reads the topmost regular file p of the layers. A layer's links
// cannot lead to the host's files.
func readIn(layers []string, p string) ([]byte, error) {
	for _, l := range layers {
		root, err := os.OpenRoot(l)
		if err != nil {
			return nil, err
		}
		b, err := root.ReadFile(p)
		root.Close()
		if err == nil && len(b) <= maxAccounts {
			return b, nil
		}
	}
	return nil, fs.ErrNotExist
}
