package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The skeleton is the topmost layer: a directory that holds the mount points
// and the few files of /etc that describe the sandbox instead of the image.

// user names an agent's account inside its sandbox.
const user = "agent"

// mountPoints exist in every sandbox.
var mountPoints = []string{"/proc", "/dev", "/tmp", "/etc"}

// skeleton is what the topmost layer is made of.
type skeleton struct {
	img    Image
	id     owner
	home   string
	writes []string // mount points of the writable folders
	trust  []byte
}

// make fills dir, which it creates.
func (k *skeleton) make(dir string) error {
	for _, p := range slices.Concat(mountPoints, k.writes) {
		if err := noLinks(k.img, p); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			return err
		}
	}
	for p, text := range k.files() {
		to := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return readable(dir)
}

// key changes with everything that a skeleton depends on.
func (k *skeleton) key() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %d %d %q %q %q", k.img.Digest, k.img.Layers, k.id.uid, k.id.gid, k.home, k.writes, k.trust)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// skeleton returns the directory of k for an agent. It is made once in a
// daemon's life: nothing ever writes to it, but making it takes as long as
// the mounts do. Open removes them all, so that none is trusted which a power
// cut may have torn.
func (l *Local) skeleton(name string, k *skeleton) (string, error) {
	dir := filepath.Join(l.agentDir(name), skeletonPrefix+k.key())
	if exists(dir) {
		return dir, nil
	}
	if err := l.dropSkeletons(name); err != nil {
		return "", err
	}
	tmp := dir + ".new"
	if err := k.make(tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, os.Rename(tmp, dir)
}

// dropSkeletons removes an agent's skeletons; it must not run.
func (l *Local) dropSkeletons(name string) error {
	old, err := filepath.Glob(filepath.Join(l.agentDir(name), skeletonPrefix+"*"))
	for _, d := range old {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
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

// files are the sandbox's own. No resolver address is the host's: the
// appliance answers DNS inside the sandbox's loopback network.
func (k *skeleton) files() map[string]string {
	u, g := strconv.Itoa(k.id.uid), strconv.Itoa(k.id.gid)
	out := map[string]string{
		"/etc/hostname":    user + "\n",
		"/etc/hosts":       "127.0.0.1 localhost " + user + "\n::1 localhost\n",
		"/etc/resolv.conf": "nameserver 127.0.0.53\noptions timeout:5 attempts:1 edns0\n",
		"/etc/passwd":      account(k.img, "passwd", u, strings.Join([]string{user, "x", u, g, user, k.home, "/bin/sh"}, ":")),
		"/etc/group":       account(k.img, "group", g, user+":x:"+g+":"),
	}
	maps.Copy(out, trusted(k.img, k.trust))
	return out
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
