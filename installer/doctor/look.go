package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	sumnote "golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// FullVerify is the size of a ledger that Look verifies in full, in bytes: about
// a second's work.
const FullVerify = 64 << 20

// certificateDirs are where certificates with an end lie, and whether who uses
// them renews them. The cluster's are K3s's.
var certificateDirs = []struct {
	path   string
	renews bool
}{
	{"etc/clawbox", false},
	{"var/lib/clawbox/keys", false},
	{"var/lib/rancher/k3s/server/tls", true},
	{"var/lib/rancher/k3s/agent", true},
}

// look is one that Look takes: what it finds out, and from what.
type look struct {
	name string
	do   func(*looking) error
}

// looking gathers facts.
type looking struct {
	Facts
	ctx context.Context
	l   installer.Layout
	cfg config.Config
	rel installer.Release
	h   host.Facts
}

var looks = []look{
	{"config", (*looking).config},
	{"installed", (*looking).installed},
	{"service", (*looking).service},
	{"kernel", (*looking).kernel},
	{"disks", (*looking).disks},
	{"ledger", (*looking).ledger},
	{"clock", (*looking).clock},
	{"keys", (*looking).keys},
	{"trust", (*looking).trust},
	{"certificates", (*looking).certificates},
	{"store", (*looking).store},
	{"left", (*looking).left},
	{"sockets", (*looking).sockets},
	{"addresses", (*looking).addresses},
	{"pods", (*looking).pods},
	{"node", (*looking).node},
}

// Look gathers what is to be known of the installation below root. It changes
// nothing and needs root for most of it.
func Look(ctx context.Context, root string) Facts {
	g := &looking{ctx: ctx, l: installer.Layout{Prefix: root}, cfg: config.Default(root), h: host.Gather(root)}
	g.Now, g.Root, g.Failed, g.Start = time.Now().UTC(), root, map[string]string{}, g.l.Start()
	for _, k := range looks {
		if err := k.do(g); err != nil {
			g.Failed[k.name] = err.Error()
		}
	}
	return g.Facts
}

func (g *looking) config() error {
	c, err := config.Load(g.l.Config())
	if err != nil {
		return err
	}
	g.cfg, g.ConfigRelease, g.Accepted = c, c.Release.Sequence, c.AcceptTier
	return nil
}

func (g *looking) installed() (err error) {
	if g.Installed, err = installer.Situated(g.Root); err != nil || g.Installed.Release == "" {
		return err
	}
	for _, p := range []string{"bin/clawbox", "bin/clawbox-launch"} {
		st, err := os.Stat(filepath.Join(g.Installed.Slot, p))
		if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o100 == 0 {
			g.Programs = append(g.Programs, p)
		}
	}
	return nil
}

func (g *looking) service() error {
	g.Health, g.Control = g.health(), ""
	st, err := control.Dial(filepath.Join(g.cfg.Paths.Run, "control.sock")).Status(g.ctx)
	if err != nil {
		g.Control = err.Error()
	} else {
		g.Status = &st
	}
	b, err := os.ReadFile(filepath.Join(g.cfg.Paths.State, "running"))
	if err == nil {
		g.Unclean = strings.TrimSpace(string(b))
	}
	if g.Start != "systemd" {
		return nil
	}
	out, err := exec.CommandContext(g.ctx, "systemctl", "is-active", "clawbox.service").Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return fmt.Errorf("systemctl: %w", err)
	}
	g.Unit = strings.TrimSpace(string(out))
	_, err = os.Lstat(g.l.Wants())
	g.Enabled = err == nil
	return nil
}

// health asks as the installer does; "" when all is well.
func (g *looking) health() string {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(g.cfg.Paths.Run, "health.sock"))
	}}}
	req, err := http.NewRequestWithContext(g.ctx, http.MethodGet, "http://clawbox/", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var h struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&h); err != nil {
		return err.Error()
	}
	if h.Error == "" && resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return h.Error
}

func (g *looking) kernel() error {
	g.Tier, g.Landlock = g.h.BPF.Tier(), g.h.Landlock
	for _, p := range []string{"bpf", "landlock"} {
		if why := g.h.Failed[p]; why != "" && p == "landlock" {
			return errors.New(why)
		}
	}
	return nil
}

func (g *looking) disks() error {
	seen := map[int32]bool{}
	for _, p := range []string{g.cfg.Paths.Ledger, g.cfg.Paths.State, g.cfg.Paths.Store, g.l.Opt()} {
		var st unix.Statfs_t
		err := unix.Statfs(p, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if seen[st.Fsid.Val[0]^st.Fsid.Val[1]] {
			continue
		}
		seen[st.Fsid.Val[0]^st.Fsid.Val[1]] = true
		d := Disk{Path: p, Free: int64(st.Bavail) * st.Bsize, Size: int64(st.Blocks) * st.Bsize, Inodes: int64(st.Ffree), RO: st.Flags&unix.ST_RDONLY != 0, Ledger: p == g.cfg.Paths.Ledger}
		if st.Files == 0 {
			d.Inodes = -1
		}
		g.Disks = append(g.Disks, d)
	}
	return nil
}

func (g *looking) ledger() error {
	dir := g.cfg.Paths.Ledger
	marks, err := filepath.Glob(filepath.Join(g.cfg.Paths.Receipts, "*.entry"))
	if err != nil {
		return err
	}
	g.Ledger.Expect = len(marks) > 0
	head, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	g.Ledger.Exists = true
	vkey, err := os.ReadFile(g.l.LedgerV())
	if err != nil {
		return err
	}
	v, err := sumnote.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return fmt.Errorf("%s: %w", g.l.LedgerV(), err)
	}
	if g.Ledger.Bytes, err = sizeOf(dir); err != nil {
		return err
	}
	if g.Ledger.Bytes > FullVerify {
		n, err := sumnote.Open(head, sumnote.VerifierList(v))
		if err != nil {
			g.Ledger.Fault = "checkpoint: " + err.Error()
			return nil
		}
		_, err = fmt.Sscanf(strings.SplitN(n.Text, "\n", 3)[1], "%d", &g.Ledger.Entries)
		return err
	}
	r, err := ledger.Verify(dir, v, ledger.Options{Anchors: [][]byte{head}})
	if err != nil {
		g.Ledger.Fault = err.Error()
		return nil
	}
	g.Ledger.Entries, g.Ledger.Full = r.Size, true
	return nil
}

func sizeOf(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			n += st.Size()
		}
		return nil // a rotation removes files meanwhile
	})
	return n, err
}

func (g *looking) clock() error {
	var err error
	if g.Installed.Release == "" {
		return nil
	}
	if g.rel, err = g.l.ReleaseOf(g.Installed.Sequence); err != nil {
		return err
	}
	g.ReleaseTime = g.rel.Created
	if st, err := os.Stat(filepath.Join(g.cfg.Paths.Ledger, "checkpoint")); err == nil {
		g.NewestFile = st.ModTime().UTC()
	}
	return nil
}

func (g *looking) left() (err error) {
	g.Mounts, g.Kernel, err = installer.Leftovers(g.cfg.Paths)
	return err
}

func (g *looking) sockets() error {
	for name, mode := range map[string]fs.FileMode{"control.sock": 0o600, "health.sock": 0o666} {
		s := Socket{Path: filepath.Join(g.cfg.Paths.Run, name)}
		st, err := os.Lstat(s.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case st.Mode().Type() != fs.ModeSocket:
			s.There, s.Fault = true, "it is no socket"
		case st.Mode().Perm() != mode:
			s.There, s.Fault = true, fmt.Sprintf("mode %04o instead of %04o", st.Mode().Perm(), mode)
		default:
			s.There = true
		}
		g.Sockets = append(g.Sockets, s)
	}
	slices.SortFunc(g.Sockets, func(a, b Socket) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

func (g *looking) addresses() error {
	if why := g.h.Failed["listening"]; why != "" {
		return errors.New(why)
	}
	for _, want := range []string{g.cfg.Registry, g.cfg.Engine.Listen} {
		if want != "" && slices.Contains(g.h.Listening, want) {
			g.Taken = append(g.Taken, want)
		}
	}
	return nil
}
