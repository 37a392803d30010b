package ocimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

const suite = "bookworm"

// packages are what an agent's shell needs. mmdebstrap adds what they depend on.
var packages = []string{
	"base-files", "bash", "ca-certificates", "coreutils", "curl", "dash", "debianutils",
	"diffutils", "file", "findutils", "git", "grep", "gzip", "hostname", "jq", "less",
	"libc-bin", "libstdc++6", "mawk", "netbase", "netcat-openbsd", "openssh-client", "patch",
	"procps", "sed", "tar", "tzdata", "unzip", "util-linux", "xz-utils",
}

// basePrune lists what the base layer leaves out, as path.Match patterns; a
// pattern that matches a folder removes what is below. Licences stay.
var basePrune = []string{
	"boot", "media", "mnt", "srv", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/log", "var/lock", "var/tmp",
	"etc/apt", "etc/dpkg", "etc/cron*", "etc/init.d", "etc/rc*.d", "etc/pam.d", "etc/security", "etc/skel", "etc/logrotate.d",
	"lib/systemd", "usr/lib/systemd", "usr/lib/udev", "usr/lib/apt", "usr/lib/dpkg", "usr/bin/apt*", "usr/bin/dpkg*",
	"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bash-completion",
	"usr/share/bug", "usr/share/gcc", "usr/share/gdb", "usr/share/menu", "usr/share/doc-base", "usr/share/zsh",
	"usr/share/doc/*/changelog*", "usr/share/doc/*/NEWS*", "usr/share/doc/*/README*", "usr/share/doc/*/examples",
	"usr/share/doc/*/contrib", "usr/share/doc/*/RelNotes*", "usr/share/i18n", "usr/share/gitweb", "usr/lib/*/gconv",
	// git depends on Perl for commands that an agent doesn't need; another interpreter is another way to run code.
	"usr/share/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/bin/perl*", "usr/bin/*perl", "usr/bin/cpan*",
	"usr/lib/git-core/git-svn", "usr/lib/git-core/git-cvs*", "usr/lib/git-core/git-send-email", "usr/lib/git-core/git-archimport",
	// They gain rights by set-uid, which the image doesn't have.
	"usr/bin/su", "usr/bin/passwd", "usr/bin/chsh", "usr/bin/chfn", "usr/bin/gpasswd", "usr/bin/newgrp", "usr/bin/mount",
	"usr/bin/umount", "usr/bin/chage", "usr/bin/expiry", "usr/lib/openssh/ssh-keysign", "usr/sbin/*",
}

// agentPrune lists what the npm tree is better off without: sources for
// debuggers and compilers, and native drivers for desktops.
var agentPrune = []string{
	".package-lock.json", "node-linux-*", "@trycua/cua-driver-linux-*", "@lydell/node-pty-darwin-*", "@lydell/node-pty-win32-*",
	"*.map", "*.d.ts", "*.d.mts", "*.d.cts", "*.d.ts.map", "*.tsbuildinfo",
}

const (
	startScript = "rootfs/usr/local/bin/openclaw"
	configFile  = "rootfs/etc/openclaw/openclaw.json"
)

// etc are the files that packages' install scripts would make; none of them runs.
var etc = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1\tlocalhost\n",
	"etc/resolv.conf":   "",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

// alternatives are the links that update-alternatives would make.
var alternatives = map[string]string{
	"usr/bin/awk": "mawk", "usr/bin/nc": "nc.openbsd", "usr/bin/pager": "less", "usr/bin/which": "which.debianutils",
}

// fillBase turns mmdebstrap's tar into the base layer.
func (b *builder) fillBase(t *tarball) error {
	file := filepath.Join(b.WorkDir, "base.tar")
	defer os.Remove(file)
	args := []string{
		"--variant=extract", "--quiet", "--architectures=" + arches[runtime.GOARCH].debian,
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=" + strings.Join(packages, ","), suite, file,
	}
	if b.Mirror != "" {
		args = append(args, b.Mirror)
	}
	if err := b.run("", []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.epoch.Unix())}, "mmdebstrap", args...); err != nil {
		return err
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "workspace"} {
		if err := t.dir(d, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(t.dir("tmp", 0o1777), fill(etc, func(k, v string) error { return t.file(k, v, 0o644) })); err != nil {
		return err
	}
	certs, err := t.debian(file)
	if err != nil {
		return err
	}
	return errors.Join(t.file("etc/ssl/certs/ca-certificates.crt", certs, 0o644), fill(alternatives, t.link))
}

// debian copies the entries of mmdebstrap's tar that basePrune leaves, and
// returns the certificates of the authorities that Debian trusts, as
// update-ca-certificates joins them.
func (t *tarball) debian(file string) (certs string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	drop := dropper(basePrune)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return certs, nil
		}
		if err != nil {
			return "", err
		}
		name := strings.Trim(path.Clean("/"+h.Name), "/")
		if drop(name) {
			continue
		}
		if strings.HasPrefix(name, "usr/share/ca-certificates/") && strings.HasSuffix(name, ".crt") {
			pem, err := io.ReadAll(r)
			if err != nil {
				return "", err
			}
			certs += strings.TrimRight(string(pem), "\n") + "\n"
			continue
		}
		if err := t.add(h, r); err != nil {
			return "", err
		}
	}
}

// install runs npm for the layers node and agent and returns the tree's folder.
// The folder is reused as long as it holds the same lock.
func (b *builder) install() (string, error) {
	dir := filepath.Join(b.WorkDir, "npm")
	mark := filepath.Join(dir, "done")
	lock := embedded("npm/package-lock.json")
	if old, err := os.ReadFile(mark); err == nil && string(old) == lock {
		return filepath.Join(dir, "node_modules"), nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, f := range []string{"package.json", "package-lock.json"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(embedded("npm/"+f)), 0o644); err != nil {
			return "", err
		}
	}
	if err := b.run(dir, nil, "npm", "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"); err != nil {
		return "", err
	}
	mods := filepath.Join(dir, "node_modules")
	if err := b.finish(mods); err != nil {
		return "", err
	}
	return mods, os.WriteFile(mark, []byte(lock), 0o644)
}

// finish runs the one install script that OpenClaw insists on (it removes
// stale files of its own package and the mark that says so). The program
// refuses to start on a read-only root without it.
func (b *builder) finish(mods string) error {
	node := filepath.Join(mods, arches[runtime.GOARCH].node, "bin", "node")
	pkg := filepath.Join(mods, "openclaw")
	if err := b.run(pkg, nil, node, "scripts/postinstall-bundled-plugins.mjs"); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(pkg, ".openclaw-lifecycle-pending")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("openclaw's install script left its mark .openclaw-lifecycle-pending (%v): the image would not start", err)
	}
	return nil
}

func (b *builder) fillNode(t *tarball) error {
	mods, err := b.install()
	if err != nil {
		return err
	}
	pkg := filepath.Join(mods, arches[runtime.GOARCH].node)
	all := func(string) bool { return false }
	return errors.Join(
		t.tree(filepath.Join(pkg, "bin/node"), "usr/local/bin/node", all),
		t.tree(filepath.Join(pkg, "LICENSE"), "usr/share/doc/node/LICENSE", all))
}

func (b *builder) fillAgent(t *tarball) error {
	mods, err := b.install()
	if err != nil {
		return err
	}
	drop := dropper(agentPrune)
	return t.tree(mods, "opt/openclaw/node_modules", func(rel string) bool {
		// TypeScript reads its own library's declarations when it runs.
		return drop(rel) && !strings.HasPrefix(rel, "typescript/")
	})
}

func (b *builder) fillConfig(t *tarball) error {
	return errors.Join(
		t.file(strings.TrimPrefix(configFile, "rootfs/"), embedded(configFile), 0o644),
		t.file(strings.TrimPrefix(startScript, "rootfs/"), embedded(startScript), 0o755))
}

// dropper tells whether a path, or a folder above it, matches a pattern. A pattern
// without a slash is held against the last element too.
func dropper(patterns []string) func(string) bool {
	match := func(name string) bool {
		for _, p := range patterns {
			if ok, _ := path.Match(p, name); ok {
				return true
			}
			if !strings.Contains(p, "/") && strings.HasPrefix(p, "*.") {
				if ok, _ := path.Match(p, path.Base(name)); ok {
					return true
				}
			}
		}
		return false
	}
	return func(name string) bool {
		for ; name != "." && name != "/"; name = path.Dir(name) {
			if match(name) {
				return true
			}
		}
		return false
	}
}

// fill calls f for each pair in the order of the keys.
func fill(m map[string]string, f func(k, v string) error) error {
	for _, k := range sorted(m) {
		if err := f(k, m[k]); err != nil {
			return err
		}
	}
	return nil
}
