package deb

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// target is one archive as apt on this machine has it: its configuration says
// where, its lists hold what it fetched.
type target struct {
	Source
	lists string // the folder of apt's lists
}

// apt asks apt for its Debian archives; it skips where there is no apt, or no
// lists.
func apt(t *testing.T) []target {
	t.Helper()
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(CREATED_BY)|$(SITE)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ARCHITECTURE)|$(FILENAME)|$(LABEL)").Output()
	if err != nil {
		t.Skipf("apt-get indextargets: %v", err)
	}
	const ring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	key, err := os.ReadFile(ring)
	if err != nil {
		t.Skipf("Debian's keyring: %v", err)
	}
	var ts []target
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 8 || f[0] != "Packages" || !strings.HasPrefix(f[7], "Debian") || f[5] != "amd64" {
			continue
		}
		lists, _, _ := strings.Cut(f[6], "_"+f[4]+"_binary-amd64_")
		fi, err := os.Stat(lists + "_InRelease")
		if err != nil {
			t.Skipf("apt's lists: %v", err)
		}
		ts = append(ts, target{Source{URI: f[2], Suite: f[3], Components: []string{f[4]}, Keys: key, Now: fi.ModTime()}, lists})
	}
	if len(ts) == 0 {
		t.Skipf("apt has no Debian archive: %q", out)
	}
	return ts
}

// local serves a source from apt's lists, which hold Packages unpacked, in a
// form that apt-helper reads.
func (x target) local(ctx context.Context, at string) (io.ReadCloser, error) {
	rel, ok := strings.CutPrefix(at, x.base()+"/")
	if !ok {
		return nil, fmt.Errorf("%s: %w", at, fs.ErrNotExist)
	}
	file := x.lists + "_" + strings.ReplaceAll(rel, "/", "_")
	if rel == "InRelease" {
		return os.Open(file)
	}
	if strings.HasSuffix(rel, ".xz") || strings.HasSuffix(rel, ".gz") {
		return nil, fs.ErrNotExist
	}
	found, _ := filepath.Glob(file + "*")
	if len(found) == 0 {
		return nil, fs.ErrNotExist
	}
	out, err := exec.CommandContext(ctx, "/usr/lib/apt/apt-helper", "cat-file", found[0]).Output()
	return io.NopCloser(strings.NewReader(string(out))), err
}

// TestAgainstApt resolves real packages of Debian's archive on an empty target
// and on one with a base system, and compares with what apt would download.
func TestAgainstApt(t *testing.T) {
	x := NewIndex("amd64")
	for _, s := range apt(t) {
		if err := x.Read(t.Context(), s.Source, s.local); err != nil {
			t.Fatal(err)
		}
	}
	if x.Len() < 50000 {
		t.Skipf("apt's lists hold %d packages only", x.Len())
	}
	status := "/var/lib/dpkg/status"
	f, err := os.Open(status)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	host, err := ReadManifest(f)
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		packages  []string
		status    string
		installed map[string]string
	}{
		{[]string{"nginx", "python3-yaml"}, empty, nil},
		{[]string{"containerd", "runc", "conntrack", "linux-image-amd64"}, empty, nil},
		{[]string{"golang-go", "exfatprogs", "nftables"}, status, host},
		{[]string{"postgresql", "openssh-server", "docker.io"}, empty, nil},
		{[]string{"k3s-missing-here", "curl"}, empty, nil},
	}
	if os.Getenv("CLAWBOX_LONG") == "" {
		cases = cases[1:2] // apt-get takes seconds for each
	}
	for _, c := range cases {
		args := append([]string{"install", "--print-uris", "-y", "-qq", "--no-install-recommends", "-o", "Dir::State::status=" + c.status, "-o", "Debug::NoLocking=true"}, c.packages...)
		out, err := exec.CommandContext(t.Context(), "apt-get", args...).Output()
		if err != nil {
			if _, ours := x.Closure(Request{Packages: c.packages, Installed: c.installed}); ours == nil {
				t.Errorf("apt-get refuses %v (%v), and we don't", c.packages, err)
			}
			continue
		}
		var want []string
		for line := range strings.Lines(string(out)) {
			if raw, _, ok := strings.Cut(strings.TrimPrefix(line, "'"), "'"); ok {
				if u, err := url.PathUnescape(raw); err == nil {
					want = append(want, u)
				}
			}
		}
		p, err := x.Closure(Request{Packages: c.packages, Installed: c.installed})
		if err != nil {
			t.Errorf("%v: %v", c.packages, err)
			continue
		}
		var got []string
		for _, f := range p.Files {
			got = append(got, f.URL)
		}
		slices.Sort(got)
		slices.Sort(want)
		t.Logf("%v on %s: %d files, apt %d", c.packages, filepath.Base(filepath.Dir(c.status)), len(got), len(want))
		for _, u := range got {
			if !slices.Contains(want, u) {
				t.Errorf("%v: apt doesn't take %s", c.packages, filepath.Base(u))
			}
		}
		for _, u := range want {
			if !slices.Contains(got, u) {
				t.Errorf("%v: apt also takes %s", c.packages, filepath.Base(u))
			}
		}
	}
}

// TestMirror reads the small suites over the network, with the packings that a
// mirror has, and skips where the mirror can't be reached.
func TestMirror(t *testing.T) {
	client := &http.Client{Timeout: 60 * time.Second}
	fetch := func(ctx context.Context, at string) (io.ReadCloser, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
		if err != nil {
			return nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusNotFound {
			res.Body.Close()
			return nil, fs.ErrNotExist
		}
		if res.StatusCode != http.StatusOK {
			res.Body.Close()
			return nil, fmt.Errorf("%s", res.Status)
		}
		return res.Body, nil
	}
	for _, s := range apt(t) {
		if !strings.HasSuffix(s.Suite, "-updates") {
			continue
		}
		in, err := fetch(t.Context(), s.base()+"/InRelease")
		if err != nil {
			t.Skipf("the mirror that apt uses here: %v", err)
		}
		in.Close()
		x := NewIndex("amd64")
		s.Now = time.Time{}
		if err := x.Read(t.Context(), s.Source, fetch); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d packages", s.Suite, x.Len())
	}
}
