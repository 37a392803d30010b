// Package installer turns verified media and a few answers into an appliance
// on this host.
//
// Four values, each made from the ones before it, and only the last acts:
//
//	facts := host.Gather(answers.Root)              // what the machine is
//	finds := installer.Preflight(facts, answers, r) // what speaks against it
//	plan, err := installer.NewPlan(facts, answers, r) // what will be done, readable
//	res, err := installer.Run(ctx, plan, env)       // journalled, resumable
//
// Verify first, touch later: media are opened by bundle.OpenMedia, which has
// checked the signature, the index and every size before a Release exists;
// Run looks at sequence and preflight again; only then the first folder is
// made. The payload is hashed while it is copied, as it must be read only
// once; if media turn out not to be what was signed then, a first installation
// is taken back and only verified blobs stay in the store (with Env.Verify
// everything is read twice and nothing stays).
//
// Run writes one line to <state>/install/journal before and after each step.
// Killed at any moment and started again with the same media, it repeats the
// step that has no "done" line; every step arrives at the same result from
// whatever it finds. Activation is one rename of the link opt/clawbox/current,
// after everything else is in place and durable. Run on a finished
// installation verifies it, repairs what differs, and says what it did.
//
// Nothing is downloaded, no user is added (sandboxes get bare numeric ids from
// a configured range), no program of the media runs before its bytes are
// verified.
//
// # From one release to the next
//
//	plan, err := installer.NewUpgrade(facts, root, operator, release) // or NewRollback
//	res, err := installer.Apply(ctx, plan, env)
//
// The next release is made ready in a slot of its own while the present one
// works. Then the appliance is stopped, its state is kept (Snapshotter), and one
// try is armed. Every start goes through Boot, in the program of the release
// that was committed last: it uses the marker up before it enters the other
// release, so that this happens once. Gates (Gate) prove the release within a
// deadline. Until the line "commit" is in the journal, whatever happens leads
// back: the release before, with its state; from then on it leads forward. The
// ledger is never put back, it only grows, and it has every turn with its
// reason. Between releases this is fixed: `serve --config FILE`, the health
// socket, and the files below <state>/install.
//
// # On K3s
//
// With the profile "cluster" the same steps place K3s beside the appliance:
// k3s.Node says which files, the local registry has the images (containerd
// pulls straight from the store's blobs), and Charts says, as data, what the
// cluster runs; Env.Cluster installs that. A change takes K3s along: its
// datastore and keys are state, BootNode decides whose K3s a start enters, and a
// gate asks the cluster itself.
//
// Limits today: agents' own files are not part of the kept state. The appliance's
// systemd unit stays as it was installed: run `clawbox install` with the new media
// where a release brings another.
package installer

import (
	"io/fs"
	"path/filepath"
	"strconv"
)

// Layout is where an installation keeps things: fixed names below a prefix.
type Layout struct{ Prefix string }

func (l Layout) at(p string) string { return filepath.Join("/", l.Prefix, p) }

// The places. Slot is a release's own folder and the only one that is ever
// replaced as a whole.
func (l Layout) Opt() string      { return l.at("opt/clawbox") }
func (l Layout) Slots() string    { return l.at("opt/clawbox/slots") }
func (l Layout) Current() string  { return l.at("opt/clawbox/current") }
func (l Layout) Etc() string      { return l.at("etc/clawbox") }
func (l Layout) Config() string   { return l.at("etc/clawbox/appliance.yaml") }
func (l Layout) Trust() string    { return l.at("etc/clawbox/trusted.vkeys") }
func (l Layout) LedgerV() string  { return l.at("etc/clawbox/ledger.vkey") }
func (l Layout) Command() string  { return l.at("usr/local/bin/clawbox") }
func (l Layout) State() string    { return l.at("var/lib/clawbox") }
func (l Layout) Store() string    { return l.at("var/lib/clawbox/store") }
func (l Layout) Keys() string     { return l.at("var/lib/clawbox/keys") }
func (l Layout) LedgerS() string  { return l.at("var/lib/clawbox/keys/ledger.key") }
func (l Layout) Receipts() string { return l.at("var/lib/clawbox/receipts") }
func (l Layout) Install() string  { return l.at("var/lib/clawbox/install") }
func (l Layout) Journal() string  { return l.at("var/lib/clawbox/install/journal") }
func (l Layout) Answers() string  { return l.at("var/lib/clawbox/install/answers.yaml") }
func (l Layout) Lock() string     { return l.at("var/lib/clawbox/install/lock") }
func (l Layout) Run() string      { return l.at("run/clawbox") }
func (l Layout) Unit() string     { return l.at("etc/systemd/system/clawbox.service") }
func (l Layout) Wants() string {
	return l.at("etc/systemd/system/multi-user.target.wants/clawbox.service")
}

// Slot names the folder of one release: version and sequence, because two
// releases may carry one version.
func (l Layout) Slot(version string, sequence int64) string {
	return filepath.Join(l.Slots(), version+"-"+strconv.FormatInt(sequence, 10))
}

// dirs are the folders that an installation owns, with their exact modes.
func (l Layout) dirs() []folder {
	return []folder{
		{l.Opt(), 0o755, ""},
		{l.Slots(), 0o755, ""},
		{l.Etc(), 0o755, ""},
		{l.State(), 0o711, ""}, // sandboxes and the engine pass through, nobody lists
		{l.Store(), 0o755, ""}, // the engine reads models as its own user
		{l.Keys(), 0o700, ""},  // private keys
		{l.at("var/lib/clawbox/ledger"), 0o700, "ledger"},
		{l.Receipts(), 0o700, ""},
		{l.Install(), 0o700, ""},
		{l.Run(), 0o755, ""}, // the health socket is for everyone
	}
}

// folder is one of an installation's.
type folder struct {
	path    string
	mode    fs.FileMode
	service string // whose it may be, once the appliance has run; "": root's alone
}
