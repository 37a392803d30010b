package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/deb"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/spf13/cobra"
)

func debCmd(a *app) *cobra.Command {
	var file, dir string
	c := &cobra.Command{
		Use:   "deb -f PACKAGES.yaml [--download DIR]",
		Short: "Work out which .deb files a clean target lacks",
		Long: `Work out which .deb files a clean target lacks for some packages, such as a driver
and a container toolkit, and print their URLs and digests, or bring them into a
folder.

The file names the archives with their keyrings, the packages, the target's kernel
and a list of what a clean installation has (dpkg-query -W there):

  apiVersion: clawbox.io/v1
  kind: Packages
  architecture: amd64
  kernel: 5.15.0-100-generic
  branch: "550"
  installed: ubuntu-22.04.manifest
  sources:
    - {uri: "http://archive.ubuntu.com/ubuntu", suite: jammy-updates, components: [main, restricted], keyring: ubuntu.gpg}
    - {uri: "https://nvidia.github.io/libnvidia-container/stable/deb", suite: amd64/, keyring: nvidia.gpg}
  packages: ["nvidia-driver-{branch}-server-open", "linux-modules-nvidia-{branch}-server-open-{kernel}", nvidia-container-toolkit]`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := bundle.LoadPackages(file)
			if err != nil {
				return err
			}
			p, err := s.Plan(cmd.Context())
			if err != nil {
				return err
			}
			if dir != "" {
				if err := download(cmd.Context(), p, dir); err != nil {
					return err
				}
			}
			return a.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				for _, f := range p.Files {
					fmt.Fprintf(w, "%s  %s\n", f.SHA256, f.URL)
				}
				for _, n := range p.Notes {
					fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", n)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%d files, %s\n", len(p.Files), bundle.Size(p.Size()))
			})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "what is wanted, and from where")
	c.Flags().StringVar(&dir, "download", "", "folder to bring the files into")
	_ = c.MarkFlagRequired("file")
	return c
}

// download brings the files of a plan into dir. What is there already is hashed,
// and kept if it is right.
func download(ctx context.Context, p deb.Plan, dir string) error {
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range p.Files {
		to := filepath.Join(dir, path.Base(f.URL))
		if in, err := os.Open(to); err == nil {
			got, n, err := sumOf(in, f.Size, io.Discard)
			if err := errors.Join(err, in.Close()); err != nil {
				return err
			}
			if got == f.SHA256 && n == f.Size {
				continue
			}
		}
		if err := downloadOne(ctx, f, to); err != nil {
			return fmt.Errorf("%s: %w", f.URL, err)
		}
	}
	return durable.SyncDir(dir)
}

func downloadOne(ctx context.Context, f deb.File, to string) (err error) {
	in, err := bundle.FetchDeb(ctx, f.URL)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".deb-*")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err == nil {
			err = os.Rename(out.Name(), to)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(out.Name()))
		}
	}()
	got, n, err := sumOf(in, f.Size, out)
	if err != nil {
		return err
	}
	if got != f.SHA256 || n != f.Size {
		return fmt.Errorf("got %d bytes with sha256 %s, want %d with %s: the mirror is being updated, or was tampered with", n, got, f.Size, f.SHA256)
	}
	return errors.Join(out.Chmod(0o644), out.Sync())
}

// sumOf copies at most size bytes, and one more to see that there are more.
func sumOf(r io.Reader, size int64, w io.Writer) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, w), io.LimitReader(r, size+1))
	return hex.EncodeToString(h.Sum(nil)), n, err
}
