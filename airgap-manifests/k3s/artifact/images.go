package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is one program on an empty root. Ref is repository:tag, as the
// registry will show it.
type image struct {
	ref   string
	part  string // whose program it is; empty for busybox
	prog  string
	entry []string
	path  string   // where the program lies in the image
	links []string // other names of the program, in its folder
}

// applets are busybox's names that local-path's helper and the tests use.
var applets = strings.Fields("sh cat chmod chown cp date dd df echo env false grep head hostname id ip ls mkdir mknod mount mv nc nslookup ping ps rm sed sleep sort stat sync tail tee test touch tr true uname unshare wc wget")

var imageTable = []image{
	{ref: "pause:1.0", part: "cni", prog: "pause", path: "pause", entry: []string{"/pause"}},
	{ref: "coredns:1.13.1", part: "coredns", prog: "coredns", path: "coredns", entry: []string{"/coredns"}},
	{ref: "local-path-provisioner:0.0.30", part: "local-path", prog: "local-path-provisioner", path: "usr/bin/local-path-provisioner", entry: []string{"local-path-provisioner"}},
	{ref: "busybox:debian", path: "bin/busybox", links: applets},
}

// busyboxFile finds Debian's static busybox.
func busyboxFile() (string, error) {
	f, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("%w; run: apt-get install busybox-static", err)
	}
	if out, err := exec.Command("ldd", f).CombinedOutput(); err == nil {
		return "", fmt.Errorf("%s is not static; run: apt-get install busybox-static\n%s", f, out)
	}
	return f, nil
}

// images writes the OCI layout of all images unless it is there already.
func (b *builder) images() error {
	box, err := busyboxFile()
	if err != nil {
		return err
	}
	h := sha256.New()
	fmt.Fprintf(h, "1 %q", imageTable)
	files := map[string]string{}
	for _, im := range imageTable {
		files[im.ref] = box
		if im.part != "" {
			files[im.ref] = filepath.Join(b.dir(im.part), im.prog)
		}
		if err := hashFile(h, files[im.ref]); err != nil {
			return err
		}
	}
	return b.once("images", hex.EncodeToString(h.Sum(nil)), func() error {
		l, err := layout.Write(b.dir("images"), empty.Index)
		if err != nil {
			return err
		}
		for _, im := range imageTable {
			if err := im.add(l, files[im.ref]); err != nil {
				return fmt.Errorf("%s: %w", im.ref, err)
			}
		}
		return nil
	})
}

// add appends the image to the layout.
func (im image) add(l layout.Path, file string) error {
	t, err := im.tar(file)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(t)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created = "linux", runtime.GOARCH, v1.Time{Time: time.Unix(0, 0).UTC()}
	cf.Config = v1.Config{Entrypoint: im.entry, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, WorkingDir: "/"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return err
	}
	return l.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": im.ref}))
}

// tar is the image's only layer: folders, the program, its links, and a /tmp.
func (im image) tar(file string) ([]byte, error) {
	prog, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var errs []error
	put := func(h tar.Header, data []byte) {
		h.ModTime, h.Format, h.Size = time.Unix(0, 0), tar.FormatPAX, int64(len(data))
		errs = append(errs, w.WriteHeader(&h))
		_, err := w.Write(data)
		errs = append(errs, err)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	var dir string
	for _, d := range strings.Split(path.Dir(im.path), "/") {
		if d != "." {
			dir += d + "/"
			put(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
		}
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: im.path, Mode: 0o755}, prog)
	for _, l := range im.links {
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: dir + l, Linkname: path.Base(im.path), Mode: 0o777}, nil)
	}
	return buf.Bytes(), errors.Join(append(errs, w.Close())...)
}
