package host

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// gatherer reads below sys ("/" outside tests) into f.
type gatherer struct {
	sys string
	f   *Facts
}

// probes in the order they run; the name is the key in Facts.Failed.
var probes = []struct {
	name string
	run  func(*gatherer) error
}{
	{"hostname", (*gatherer).hostname},
	{"os", (*gatherer).osRelease},
	{"kernel", (*gatherer).kernel},
	{"memory", (*gatherer).memory},
	{"lsm", (*gatherer).lsm},
	{"selinux", (*gatherer).selinux},
	{"landlock", (*gatherer).landlock},
	{"seccomp", (*gatherer).seccomp},
	{"namespaces", (*gatherer).namespaces},
	{"userns", (*gatherer).userns},
	{"overlay", (*gatherer).overlay},
	{"cgroup", (*gatherer).cgroup},
	{"bpf", (*gatherer).bpf},
	{"fips", (*gatherer).fips},
	{"systemd", (*gatherer).systemd},
	{"clock", (*gatherer).clock},
	{"routes", (*gatherer).routes},
	{"listening", (*gatherer).listening},
	{"uids", (*gatherer).uids},
	{"disk", (*gatherer).disk},
	{"diskspeed", (*gatherer).diskSpeed},
	{"gpus", (*gatherer).gpus},
	{"nvml", (*gatherer).nvml},
	{"earlier", (*gatherer).earlier},
	{"kconfig", (*gatherer).kconfig},
	{"modules", (*gatherer).modules},
	{"sysctls", (*gatherer).sysctls},
	{"security", (*gatherer).security},
	{"swap", (*gatherer).swap},
	{"networks", (*gatherer).networks},
	{"addresses", (*gatherer).addresses},
	{"names", (*gatherer).names},
	{"firewalls", (*gatherer).firewalls},
	{"tools", (*gatherer).tools},
	{"node", (*gatherer).node},
	{"places", (*gatherer).places},
	{"others", (*gatherer).others},
}

// Gather probes this machine for an installation below root. It never fails
// as a whole: what could not be told is in Facts.Failed. It takes some tenths
// of a second, most of it for the disk.
func Gather(root string) Facts {
	return gather("/", filepath.Join("/", root))
}

func gather(sys, root string) Facts {
	f := Facts{
		Time: time.Now().UTC(), Root: root, UID: os.Geteuid(),
		Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Failed: map[string]string{},
	}
	g := &gatherer{sys: sys, f: &f}
	for _, p := range probes {
		if err := p.run(g); err != nil {
			f.Failed[p.name] = err.Error()
		}
	}
	return f
}

// read returns a small file of the system without its trailing newline.
func (g *gatherer) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(g.sys, path))
	return strings.TrimSuffix(string(b), "\n"), err
}

// exists tells absence from not knowing.
func (g *gatherer) exists(path string) (bool, error) {
	_, err := os.Lstat(filepath.Join(g.sys, path))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (g *gatherer) hostname() (err error) {
	g.f.Hostname, err = g.read("/proc/sys/kernel/hostname")
	return err
}

func (g *gatherer) osRelease() error {
	s, err := g.read("/etc/os-release")
	if err != nil {
		return err
	}
	kv := map[string]string{}
	for l := range strings.Lines(s) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), "=")
		kv[k] = strings.Trim(v, `"'`)
	}
	g.f.OS = OS{ID: kv["ID"], Version: kv["VERSION_ID"], Pretty: kv["PRETTY_NAME"]}
	return nil
}

func (g *gatherer) systemd() (err error) {
	// The test that sd_booted(3) documents.
	g.f.Systemd, err = g.exists("/run/systemd/system")
	return err
}

func (g *gatherer) clock() error {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	g.f.ClockSync = err == nil && state != unix.TIME_ERROR
	return err
}

func (g *gatherer) fips() error {
	s, err := g.read("/proc/sys/crypto/fips_enabled")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without CONFIG_CRYPTO_FIPS
	}
	g.f.FIPS = s == "1"
	return err
}

// Where an installation keeps its tell-tales, below the prefix.
const (
	configFile  = "etc/clawbox/appliance.yaml"
	journalFile = "var/lib/clawbox/install/journal"
	currentLink = "opt/clawbox/current"
	stateDir    = "var/lib/clawbox"
	blobsDir    = "var/lib/clawbox/store/blobs/sha256"
)

func (g *gatherer) earlier() error {
	e := &g.f.Earlier
	for _, t := range []struct {
		path string
		set  *bool
	}{{configFile, &e.Config}, {journalFile, &e.Journal}, {currentLink, &e.Active}} {
		_, err := os.Lstat(filepath.Join(g.f.Root, t.path))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		*t.set = err == nil
	}
	return g.stored()
}

// stored adds up the blobs that an interrupted installation has loaded.
func (g *gatherer) stored() error {
	es, err := os.ReadDir(filepath.Join(g.f.Root, blobsDir))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	for _, e := range es {
		st, err := e.Info()
		if err != nil {
			return err
		}
		g.f.Earlier.Stored += st.Size()
	}
	return err
}
