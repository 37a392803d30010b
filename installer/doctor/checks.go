package doctor

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle"
)

// What is too little, and too soon.
const (
	lowRoom    = 1 << 30   // bytes: images are unpacked, and the ledger grows
	noRoom     = 100 << 20 // where the ledger lies, config.LaunchRoom counts
	lowInodes  = 20_000
	soon       = 90 * 24 * time.Hour
	verySoon   = 14 * 24 * time.Hour
	clockSlack = 5 * time.Minute
)

// checks in the order in which a person would look.
var checks = []check{
	{"installed", "installed", func(f Facts) Result {
		i := f.Installed
		switch {
		case i.Release == "" && i.Begun == "":
			return bad(Failure, "nothing is installed below "+f.Root, "no finished installation in the journal", "run 'clawbox install MEDIA --key NAME.pub', or name the prefix with --root")
		case i.Release == "":
			return bad(Failure, i.Begun+" is half installed", "the installation was cut off", "run the same 'clawbox install' again: it continues")
		}
		return good("%s", i.Release)
	}},
	{"change", "installed", change},
	{"slot", "installed", func(f Facts) Result {
		i := f.Installed
		switch {
		case i.Slot == "":
			return note("no release")
		case i.Current != i.Slot:
			return bad(Failure, "opt/clawbox/current leads to "+i.Current, "the link is not the one of the installed release, "+i.Slot, "run 'clawbox install' with the media of the installed release: it puts the link right")
		case len(f.Programs) > 0:
			return bad(Failure, "missing or not executable: "+strings.Join(f.Programs, ", "), "files of the slot were removed or changed", "run 'clawbox install' with the media of the installed release: it repairs the slot")
		}
		return good("%s", i.Slot)
	}},
	{"kept", "installed", func(f Facts) Result {
		i := f.Installed
		switch {
		case i.Kept == "":
			return note("no release to go back to: there was no upgrade")
		case i.KeptGone:
			return bad(Warning, i.Kept+" has no slot any more", "its folder was removed", "'clawbox rollback' fills it from the store, if the store still has it")
		}
		return good("'clawbox rollback' goes back to %s", i.Kept)
	}},
	{"configuration", "config", func(f Facts) Result {
		if f.ConfigRelease != f.Installed.Sequence && f.Installed.Release != "" {
			return bad(Failure, fmt.Sprintf("it is for sequence %d", f.ConfigRelease), "the file is of another release than the installed one", "put the file of "+f.Installed.Release+" back, or run 'clawbox install' with its media")
		}
		return good("valid, for sequence %d", f.ConfigRelease)
	}},
	{"service", "service", service},
	{"health", "", func(f Facts) Result {
		switch {
		case f.Health == "":
			return good("healthy")
		case !f.runs():
			return bad(Failure, "no answer", "the appliance does not run", "start it: see service")
		}
		return bad(Failure, f.Health, "the appliance refuses work", "look at 'clawbox status' and its log; restart it once the cause is gone")
	}},
	{"parts", "", parts},
	{"protection", "", protection},
	{"kernel", "kernel", func(f Facts) Result {
		if f.Tier > f.Accepted && f.Accepted != "" {
			return bad(Failure, "the kernel gives "+f.Tier, "accepted is "+f.Accepted+" or better: another kernel was booted, or BPF is locked", "boot the kernel of before, or accept the weakening at a new installation")
		}
		return good("promises %s, Landlock ABI %d", f.Tier, f.Landlock)
	}},
	{"disk", "disks", disk},
	{"ledger", "ledger", record},
	{"told", "installed", func(f Facts) Result {
		if n := f.Installed.Untold; n > 0 {
			return bad(Warning, fmt.Sprintf("%d turns of upgrades are not on the ledger yet", n), "the appliance has not run since", "start it: they are recorded first")
		}
		return good("the ledger has every turn of upgrades")
	}},
	{"clock", "clock", clock},
	{"keys", "keys", keys},
	{"trust", "trust", func(f Facts) Result {
		what := fmt.Sprintf("%d of %s", f.Trust.Threshold, strings.Join(f.Trust.Keys, ", "))
		if f.Trust.Root > 0 {
			return good("root version %d: %s", f.Trust.Root, what)
		}
		return Result{State: Note, Got: "fixed keys: " + what + "; they don't expire, and no media can replace them: a root can ('clawbox key root')"}
	}},
	{"certificates", "certificates", expiries},
	{"store", "store", func(f Facts) Result {
		if n := len(f.Missing); n > 0 {
			return bad(Failure, fmt.Sprintf("%d blobs of the release are missing or cut: %s", n, some(f.Missing)), "files of the store were removed, or the disk lost them", "run 'clawbox install' with the media of the installed release: it brings them again")
		}
		return good("every blob of the release is there")
	}},
	{"mounts", "left", func(f Facts) Result {
		if !f.runs() && len(f.Mounts) > 0 {
			return bad(Warning, "still mounted: "+some(f.Mounts), "the appliance was killed, and something keeps an agent's disk", "start and stop the appliance once, or umount them")
		}
		return good("%d, of agents' disks", len(f.Mounts))
	}},
	{"cgroups", "left", func(f Facts) Result {
		if !f.runs() && len(f.Kernel) > 0 {
			return bad(Warning, "left in the kernel: "+some(f.Kernel), "the appliance was killed", "start it once: it ends what a dead one left, and records what that still had to tell")
		}
		return good("%d, in use", len(f.Kernel))
	}},
	{"sockets", "sockets", sockets},
	{"addresses", "addresses", func(f Facts) Result {
		if !f.runs() && len(f.Taken) > 0 {
			return bad(Failure, "in use: "+strings.Join(f.Taken, ", "), "another program listens where the appliance wants to", "stop it (ss -ltnp), or change registry and engine in the configuration")
		}
		return good("free, or ours")
	}},
	{"pods", "pods", func(f Facts) Result {
		switch {
		case f.Pods.Fault != "":
			return bad(Failure, f.Pods.Fault, "a file was removed or changed; containers are refused until it is right", "run 'clawbox install' with the media of the installed release: it repairs it; then 'systemctl restart k3s'")
		case !f.Pods.Placed:
			return note("agents run in sandboxes of the appliance's own: this host is no node")
		case !f.Pods.Cluster:
			return note("the node asks before it runs an agent's pod; this appliance makes none: on a server 'clawbox cluster apply' gives it its account")
		}
		return good("agents run as pods")
	}},
	{"node", "node", func(f Facts) Result {
		switch {
		case !f.Node.Placed:
			return note("this host is no node of a cluster")
		case f.Node.Fault != "":
			return bad(Failure, f.Node.Fault, nodeCause(f), "correct that; then look at 'kubectl get nodes,pods,events -A' and 'journalctl -u k3s'")
		}
		return good("ready, with all that clawbox runs on the cluster")
	}},
	{"last-end", "", func(f Facts) Result {
		if !f.runs() && f.Unclean != "" {
			return bad(Warning, f.Unclean, "the last run had no orderly end", "start it: it records that")
		}
		return good("in order")
	}},
}

// nodeCauses are the causes behind what a cluster says, by a word in it, the
// first that is found.
var nodeCauses = []struct{ word, cause string }{
	{"DiskPressure", "the disk is nearly full: the kubelet evicts pods, and runs no new ones"},
	{"no space left", "the disk is full"},
	{"MemoryPressure", "memory is short: the kubelet evicts pods"},
	{"ImagePull", "containerd got no image from the registry on this host, which the appliance serves: it does not run, or the store lacks it"},
	{"ErrImage", "containerd got no image from the registry on this host, which the appliance serves: it does not run, or the store lacks it"},
	{"connection refused", "K3s does not run, or is starting"},
	{"no such file", "K3s has not run yet"},
	{"CrashLoopBackOff", "a program of the cluster's own ends again and again"},
}

func nodeCause(f Facts) string {
	for _, c := range nodeCauses {
		if strings.Contains(f.Node.Fault, c.word) {
			return c.cause
		}
	}
	return "the cluster says so itself"
}

func change(f Facts) Result {
	i := f.Installed
	switch {
	case i.Change == "" && !i.Try && !i.Tried:
		return good("none is open")
	case i.Busy && i.Tried:
		return note("%s: the release is tried now", i.Change)
	case i.Busy:
		return note("%s is at work", i.Change)
	case i.Tried && f.runs():
		return bad(Failure, i.Change+": a release runs that nobody proves", "the installer was killed while it was tried", "restart the appliance: that goes back to the release before")
	case i.Touched || i.Tried:
		return bad(Failure, i.Change+" was cut off", "the installer was killed, or the power went", "start the appliance: that ends it, with one of the two releases whole")
	}
	return bad(Warning, i.Change+" was begun and not carried on", "it was cut off before anything was stopped", "give the same command again, or leave it")
}

func service(f Facts) Result {
	switch {
	case f.Start != "systemd" && f.runs():
		return good("runs in the foreground")
	case f.Start != "systemd":
		return bad(Failure, "does not run", f.Control, "start 'clawbox serve', or what starts it here")
	case f.Unit != "active":
		return bad(Failure, "systemd says "+f.Unit, "the program ended, or was never started", "look at 'journalctl -u clawbox -n 50', then 'systemctl reset-failed clawbox' and 'systemctl start clawbox'")
	case !f.runs():
		return bad(Failure, "runs and does not answer", f.Control, "look at 'journalctl -u clawbox', then 'systemctl restart clawbox': agents end")
	case !f.Enabled:
		return bad(Warning, "runs, but not after the next boot", "the service is not enabled", "systemctl enable clawbox")
	}
	return good("active, enabled at boot")
}

func parts(f Facts) Result {
	if f.Status == nil {
		return note("not known while it does not run")
	}
	for _, s := range f.Status.Services {
		s.LastEnd = cmp.Or(s.LastEnd, "it did not say why")
		if s.PID == 0 {
			return bad(Failure, s.Name+" does not run", s.LastEnd, "it comes back by itself within seconds; if not, restart the appliance")
		}
		if s.Restarts > 0 {
			return bad(Warning, fmt.Sprintf("%s was started %d times again", s.Name, s.Restarts), s.LastEnd, "look at 'clawbox audit replay --kind service'")
		}
	}
	return good("%d services, %d agents", len(f.Status.Services), len(f.Status.Agents))
}

func protection(f Facts) Result {
	switch {
	case f.Status == nil:
		return note("not known while it does not run")
	case f.Status.Lost > 0:
		return bad(Failure, fmt.Sprintf("%d events found no room", f.Status.Lost), "an agent caused more records than were taken", "look at 'clawbox agent list'; lower recordMiB")
	case len(f.Status.Weakenings) > 0:
		return bad(Warning, strings.Join(f.Status.Weakenings, "; "), "accepted by the operator, or given by the kernel", "see 'clawbox status'")
	}
	return good("tier %s, Landlock ABI %d", f.Status.Tier, f.Status.Landlock)
}

func disk(f Facts) Result {
	var worst Result
	for _, d := range f.Disks {
		at := fmt.Sprintf("%s free of %s on %s", bundle.Size(d.Free), bundle.Size(d.Size), d.Path)
		switch {
		case d.RO:
			return bad(Failure, d.Path+" is mounted read-only", "the kernel does that after errors of the disk", "look at 'dmesg'; replace the disk, or remount it")
		case d.Ledger && d.Free < config.LaunchRoom:
			return bad(Failure, at, fmt.Sprintf("the ledger's disk is nearly full: no agent is launched below %s, and agents are stopped below %s", bundle.Size(config.LaunchRoom), bundle.Size(config.StopRoom)), config.MakeRoom)
		case d.Free < noRoom:
			return bad(Failure, at, "the disk is full", config.MakeRoom)
		case d.Inodes >= 0 && d.Inodes < lowInodes:
			worst = bad(Warning, fmt.Sprintf("%d inodes free on %s", d.Inodes, d.Path), "many small files", "find and remove them")
		case d.Free < lowRoom && worst.State == "":
			worst = bad(Warning, at, "less than "+bundle.Size(lowRoom), "make room before it fills")
		}
	}
	if worst.State != "" {
		return worst
	}
	if len(f.Disks) == 0 {
		return note("no disk was looked at")
	}
	return good("%s free on %s", bundle.Size(f.Disks[0].Free), f.Disks[0].Path)
}

func record(f Facts) Result {
	l := f.Ledger
	switch {
	case l.Fault != "":
		return bad(Failure, l.Fault, "the record was changed, cut, or the disk lost some", "change nothing; keep a copy, run 'clawbox audit verify', compare with a checkpoint kept elsewhere, restore from a backup")
	case !l.Exists && l.Expect:
		return bad(Failure, "it is gone", "receipts say that there was one", "restore it from a backup: 'clawbox restore'")
	case !l.Exists:
		return note("not begun: the appliance has not run yet")
	case !l.Full:
		return note("%d entries (%s); its signed head holds, the rest was not read: 'clawbox audit verify' does", l.Entries, bundle.Size(l.Bytes))
	}
	return good("%d entries hold", l.Entries)
}

func clock(f Facts) Result {
	at := f.Now.Format(time.RFC3339)
	switch {
	case f.Now.Before(f.ReleaseTime):
		return bad(Failure, at, "earlier than the release of "+f.ReleaseTime.Format(time.RFC3339), `set it: date -s "YYYY-MM-DD hh:mm"; records of now have a wrong time`)
	case f.Now.Add(clockSlack).Before(f.NewestFile):
		return bad(Warning, at, "the ledger was written at "+f.NewestFile.Format(time.RFC3339)+": the clock was set back", "set it; records tell when they came")
	}
	return good("%s", at)
}

func keys(f Facts) Result {
	for _, k := range f.Keys {
		if k.Fault != "" {
			return bad(Failure, k.Path+": "+k.Fault, k.What, "restore it from a backup, or make it anew where others can be told; chmod 0600")
		}
	}
	return good("%d, private; they don't expire", len(f.Keys))
}

func expiries(f Facts) Result {
	if len(f.Expires) == 0 {
		return note("none on disk: agents' certificates are made at each start")
	}
	first := f.Expires[0]
	for _, e := range f.Expires {
		if e.Until.Before(first.Until) {
			first = e
		}
	}
	at := fmt.Sprintf("%s (%s) until %s", first.Path, first.Subject, first.Until.Format("2006-01-02"))
	left := first.Until.Sub(f.Now)
	switch {
	case left < 0:
		return bad(Failure, at, "it has expired", "replace it, then restart what uses it")
	case left < verySoon || left < soon && !first.Renews:
		return bad(Warning, at, fmt.Sprintf("%d days are left", int(left.Hours()/24)), "replace it before; one that renews by itself does so when its service is restarted")
	}
	return good("%d, the first: %s", len(f.Expires), at)
}

func sockets(f Facts) Result {
	for _, s := range f.Sockets {
		if s.Fault != "" {
			return bad(Failure, s.Path+": "+s.Fault, "it was changed by another program", "restart the appliance: it makes them anew")
		}
		if s.There && !f.runs() {
			return bad(Warning, s.Path+" is there and nobody answers", "the appliance was killed", "start it: it replaces them")
		}
		if !s.There && f.runs() {
			return bad(Failure, s.Path+" is missing", "it was removed while the appliance runs", "restart the appliance")
		}
	}
	return good("as they should be")
}

// some shortens a list.
func some(s []string) string {
	if len(s) > 5 {
		return strings.Join(s[:5], ", ") + fmt.Sprintf(" and %d more", len(s)-5)
	}
	return strings.Join(s, ", ")
}
