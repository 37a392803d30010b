package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/internal/ocitree"
	"github.com/clawbox/clawbox/internal/vm"
)

// sticks are images of USB sticks. Each holds a release and the program that
// installs it. The key comes to the machine by another way.
type sticks struct {
	one, two, broken string
	key              []byte
}

// recipe is of every release; %[1]d is its number and %[2]s its main program.
const recipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: site, version: 0.%[1]d.0}
sequence: %[1]d
items:
  - {name: busy, kind: image, source: "oci-layout:image:latest", licence: GPL-2.0-only, redistributable: true}
  - {name: clawbox, kind: file, source: "file:%[2]s", path: bin/clawbox, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: clawbox-launch, kind: file, source: "file:clawbox-launch", path: bin/clawbox-launch, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: busy-policy, kind: policy, source: "file:policy-%[1]d.yaml", path: policies/busy.yaml, licence: Apache-2.0, redistributable: true}
`

// policy is the agent's; the number of processes tells the releases' apart.
const policy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: busy}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/probe], spawn: true, seccomp: default}
network: {default: deny}
budgets: {processes: %d, memory: 128MiB, wallTime: 24h}
require: {landlock: 2}
`

// makeSticks builds the programs, and the guest's own at init, and three releases:
// a first one, a later one, and one whose program ends at once.
func makeSticks(ctx context.Context, dir, init string) (s sticks, err error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	for to, pkg := range map[string]string{
		init: "./internal/vm/guest", at("clawbox"): "./cmd/clawbox", at("clawbox-launch"): "./cmd/clawbox-launch", at("probe"): "./cmd/clawbox/testdata/probe",
	} {
		if err := vm.Build(ctx, to, pkg, "-ldflags", "-s -w"); err != nil {
			return s, err
		}
	}
	if err := image(at("image"), at("probe")); err != nil {
		return s, err
	}
	if err := os.WriteFile(at("ends"), []byte("#!/bin/sh\necho this program is broken on purpose\nexit 3\n"), 0o755); err != nil {
		return s, err
	}
	if err := clawbox(ctx, dir, "key", "generate", "site", "--out", at("site")); err != nil {
		return s, err
	}
	if s.key, err = os.ReadFile(at("site.pub")); err != nil {
		return s, err
	}
	for i, r := range []struct {
		to      *string
		program string
	}{{&s.one, "clawbox"}, {&s.two, "clawbox"}, {&s.broken, "ends"}} {
		if *r.to, err = makeStick(ctx, dir, i+1, r.program); err != nil {
			return s, err
		}
	}
	return s, nil
}

func makeStick(ctx context.Context, dir string, number int, program string) (string, error) {
	at := func(format string) string { return filepath.Join(dir, fmt.Sprintf(format, number)) }
	for name, text := range map[string]string{at("policy-%d.yaml"): fmt.Sprintf(policy, 31+number), at("recipe-%d.yaml"): fmt.Sprintf(recipe, number, program)} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	folder := at("stick-%d")
	err := clawbox(ctx, dir, "bundle", "-f", at("recipe-%d.yaml"), "-o", folder, "--key", filepath.Join(dir, "site.key"),
		"--store", filepath.Join(dir, "store"), "--lock", at("lock-%d"), "--part-size", "8MiB")
	if err != nil {
		return "", err
	}
	if err := vm.Copy(filepath.Join(dir, "clawbox"), filepath.Join(folder, "clawbox-installer")); err != nil {
		return "", err
	}
	return at("stick-%d.img"), vm.Stick(ctx, at("stick-%d.img"), fmt.Sprintf("SITE%d", number), folder)
}

// clawbox runs the program that was built.
func clawbox(ctx context.Context, dir string, args ...string) error {
	if out, err := exec.CommandContext(ctx, filepath.Join(dir, "clawbox"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("clawbox %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// image writes an OCI layout with an image around the host's busybox and a program
// that asks for a URL. /bin/other is in it, and on no list.
func image(to, probe string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	root := to + ".root"
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		return err
	}
	for name, from := range map[string]string{"bin/busybox": busybox, "bin/other": busybox, "bin/sh": busybox, "bin/probe": probe} {
		if err := vm.Copy(from, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return ocitree.Write(to, os.DirFS(root), v1.Config{Entrypoint: []string{"/bin/busybox", "sleep", "1000000"}})
}
