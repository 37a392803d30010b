package installer

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle"
)

// What an appliance wants of a machine, sizes in bytes.
const (
	minMemory   = 1 << 30
	goodMemory  = 4 << 30
	minInodes   = 100_000 // an unpacked agent image has tens of thousands of files
	spareSpace  = 1 << 30 // ledger, logs, agents' workspaces; more than config.LaunchRoom
	slowFsync   = 50 * time.Millisecond
	unixPathMax = 107 // sun_path without its final NUL, unix(7)
)

// testedOS are the systems that this release was tried on.
var testedOS = []string{"debian 12", "debian 13"}

// File systems that cannot hold an appliance, and why.
var badFS = map[string]string{
	"vfat": "it has no file modes", "exfat": "it has no file modes", "ntfs": "it has no file modes", "ntfs3": "it has no file modes", "fuseblk": "its modes cannot be relied on",
	"nfs": "locks and fsync depend on another machine", "nfs4": "locks and fsync depend on another machine", "cifs": "it has no file modes", "9p": "fsync cannot be relied on",
	"iso9660": "it cannot be written", "squashfs": "it cannot be written", "erofs": "it cannot be written",
}

// volatileFS are lost at power-off.
var volatileFS = []string{"tmpfs", "ramfs", "overlay"}

// machineChecks are about the machine and its resources.
var machineChecks = []check{
	{"root-user", "", "", func(q question) Finding {
		return verdict(q.UID == 0, Refusal, fmt.Sprintf("user id %d", q.UID), "0", "run the installer as root (sudo)")
	}},
	{"os", "os", Warning, func(q question) Finding {
		id, _, _ := strings.Cut(q.OS.Version, ".")
		return verdict(slices.Contains(testedOS, q.OS.ID+" "+id), Warning, q.OS.Pretty, "one of the tested: "+strings.Join(testedOS, ", "), "it may work; the other checks decide")
	}},
	{"arch", "", "", func(q question) Finding {
		return verdict(q.Arch == "amd64" || q.Arch == "arm64", Refusal, q.Arch, "amd64 or arm64", "use such a machine")
	}},
	{"cpus", "", "", func(q question) Finding {
		return verdict(q.CPUs >= 2, Warning, strconv.Itoa(q.CPUs), "2 or more", "models will be slow")
	}},
	{"memory", "memory", "", func(q question) Finding {
		f := verdict(q.Memory.Total >= goodMemory, Warning, bundle.Size(q.Memory.Total), bundle.Size(goodMemory), "add memory, or expect agents to hit their limits")
		if q.Memory.Total < minMemory {
			f.Severity, f.Remedy = Refusal, "add memory"
		}
		return f
	}},
	{"model-memory", "memory", Warning, func(q question) Finding {
		var need int64
		for _, it := range q.r.kind("model") {
			need = max(need, it.Size)
		}
		return verdict(need < q.Memory.Total*8/10, Warning, bundle.Size(q.Memory.Total)+" of memory, largest model "+bundle.Size(need), "the largest model in 80% of memory", "the engine will read it from disk again and again; use a smaller model")
	}},
	{"disk-space", "disk", "", diskSpace},
	{"disk-inodes", "disk", "", func(q question) Finding {
		if q.Disk.Inodes < 0 {
			return Finding{Severity: OK, Got: "made as needed"}
		}
		return verdict(q.Disk.Inodes >= minInodes, Refusal, fmt.Sprintf("%d free inodes", q.Disk.Inodes), fmt.Sprint(minInodes), "free inodes on "+q.Disk.Path)
	}},
	{"disk-writable", "disk", "", func(q question) Finding {
		return verdict(!slices.Contains(q.Disk.Options, "ro"), Refusal, q.Disk.Path+" mounted "+list(q.Disk.Options), "a file system mounted rw", "mount it rw, or choose another root")
	}},
	{"disk-exec", "disk", "", func(q question) Finding {
		o := q.Disk.Options
		return verdict(!slices.Contains(o, "noexec"), Refusal, q.Disk.Path+" mounted "+list(o), "a file system without noexec", "remount it with exec: agents' programs run from unpacked layers there")
	}},
	{"disk-type", "disk", "", func(q question) Finding {
		why, isBad := badFS[q.Disk.FSType]
		if !isBad {
			return Finding{Severity: OK, Got: q.Disk.FSType}
		}
		return verdict(false, Refusal, q.Disk.FSType+": "+why, "ext4, xfs or btrfs", "choose a root on another file system")
	}},
	{"disk-volatile", "disk", "", func(q question) Finding {
		return verdict(!slices.Contains(volatileFS, q.Disk.FSType), Refusal, q.Disk.FSType, "a file system that outlives power-off", "choose a root on a disk").weak("volatile-state")
	}},
	{"disk-fsync", "diskspeed", Warning, func(q question) Finding {
		return verdict(q.Disk.Fsync <= slowFsync, Warning, q.Disk.Fsync.Round(10*time.Microsecond).String(), "at most "+slowFsync.String(), "each governed action waits for the ledger's fsync; use a faster disk")
	}},
	{"clock", "", "", func(q question) Finding {
		return verdict(!q.Time.Before(q.r.Created), Refusal, q.Time.Format(time.RFC3339), "later than the release of "+q.r.Created.Format(time.RFC3339), `set the clock: date -s "YYYY-MM-DD hh:mm"`).weak("clock-unsure")
	}},
	{"clock-sync", "clock", Note, func(q question) Finding {
		if q.ClockSync {
			return Finding{Severity: OK, Got: "synchronised"}
		}
		return inform("not synchronised; the ledger's times are as good as the local clock")
	}},
	{"offline", "routes", Note, func(q question) Finding {
		if len(q.Routes) == 0 {
			return inform("no default route: offline, as intended; nothing here needs one")
		}
		return inform("default route on " + list(q.Routes) + "; the installer uses none")
	}},
	{"ports", "listening", "", ports},
	{"uid-range", "uids", "", uidRange},
	{"socket-path", "", "", func(q question) Finding {
		p := filepath.Join(q.a.layout().Run(), "control.sock")
		return verdict(len(p) <= unixPathMax, Refusal, fmt.Sprintf("%d bytes: %s", len(p), p), fmt.Sprintf("at most %d bytes", unixPathMax), "choose a shorter root")
	}},
	{"fips", "fips", Warning, func(q question) Finding {
		return verdict(!q.FIPS, Warning, "FIPS mode: "+yes(q.FIPS), "a host without FIPS mode", "signatures here are Ed25519 by Go's library, not a validated module; ask your security officer")
	}},
}

// diskSpace wants room for what Run writes and for what serving unpacks.
func diskSpace(q question) Finding {
	need := max(spaceNeeded(q.r)-q.Earlier.Stored, spareSpace)
	if q.Earlier.Active { // a repair brings back single blobs; Load looks again
		need = 0
	}
	return verdict(q.Disk.Free >= need, Refusal, bundle.Size(q.Disk.Free)+" free on "+q.Disk.Path, bundle.Size(need), "free "+bundle.Size(need-q.Disk.Free)+", or choose a root on another disk")
}

// spaceNeeded is the payload once, the slot's copies, images unpacked, and
// some to live on. Layers are compressed about 1:2.5; 3 is on the safe side.
func spaceNeeded(r Release) int64 {
	n := r.Bytes + spareSpace
	for _, it := range r.slotItems() {
		n += it.Size
	}
	for _, it := range r.kind("image") {
		n += 3 * it.Size
	}
	return n
}

// ports refuses addresses that somebody else listens on. Where this appliance
// is installed already, that is most likely itself.
func ports(q question) Finding {
	var taken []string
	for _, want := range []string{q.a.Registry, q.a.Engine.Listen} {
		w, err := netip.ParseAddrPort(want)
		if err != nil {
			continue // empty: no engine; wrong: Answers.Validate has said so
		}
		for _, l := range q.Listening {
			a, err := netip.ParseAddrPort(l)
			if err == nil && a.Port() == w.Port() && (a.Addr() == w.Addr() || a.Addr().IsUnspecified()) {
				taken = append(taken, l)
			}
		}
	}
	s := Refusal
	if q.Earlier.Active {
		s = Note
	}
	if len(taken) == 0 {
		return Finding{Severity: OK, Got: "free"}
	}
	return verdict(false, s, "in use: "+list(taken), "registry and engine addresses that are free", "stop what listens there (ss -ltnp), or answer other ports")
}

func uidRange(q question) Finding {
	first := int64(q.a.UIDBase)
	last := first + config.UIDCount + config.ServiceCount // the engine's id and the services' follow the sandboxes'
	got := fmt.Sprintf("%d-%d", first, last)
	for _, r := range q.UIDs {
		if r.First <= last && first < r.First+r.Count {
			return Finding{
				Severity: Refusal, Got: got + ", which " + r.Owner + " has a part of", Wanted: "user ids that nobody has",
				Remedy: "answer another uidBase",
			}
		}
	}
	return Finding{Severity: OK, Got: got}
}
