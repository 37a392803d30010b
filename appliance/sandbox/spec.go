package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/sys/unix"
)

// Spec asks for one sandbox.
type Spec struct {
	Name   string // of the agent: its user id and files are found again by it
	Image  Image
	Policy *policies.Policy
	Args   []string // replace the image's Cmd, behind its Entrypoint
	Env    []string // NAME=value, over the image's
	// TrustPEM are certificates, in PEM, that the agent's programs shall trust
	// beside those of the image: of the authority that egress ends inspected
	// connections with. Nil: none.
	TrustPEM []byte
	// Stdout and Stderr take the agent's output, through pipes: no host file
	// is open in the sandbox. Nil discards.
	Stdout, Stderr io.Writer

	// Network is called once the namespaces stand, before the agent runs;
	// what it returns is closed after the sandbox's end. Nil: no network at
	// all, not even loopback.
	Network func(ctx context.Context, pid int, netns *os.File) (io.Closer, error)
	// Landed is called in place of Network where Options.Ahead has made the
	// namespace ready already. It owns what it is given, also when it fails;
	// what it returns is closed after the sandbox's end. Nil: the start gets no
	// such namespace.
	Landed func(ctx context.Context, a Ahead) (io.Closer, error)
	// Guard is called then, too, with the programs that may run. Nil is
	// accepted only under a policy that requires no more than tier T4. In a pod
	// it is called once before, with the launcher as the only program and
	// Scope.NoRefusals; the second call replaces the first one's scope, and what
	// the first returned is not used any more.
	Guard func(guard.Scope) (io.Closer, error)
	// Programs is called before Guard with where those programs are in the
	// sandbox; of several paths to one file it has one. May be nil.
	Programs func(map[guard.Inode]string)
	// Before is called last, when all but the agent stands: it returns once the
	// agent may run, or an error, and then it doesn't. May be nil.
	Before func() error
	// Tier is the guard's, such as "T3": policies can require what only some
	// tiers do. Empty is as good as none.
	Tier string
	// Event is told, from a goroutine of the sandbox's own, when a budget is
	// hit. May be nil.
	Event func(Event)
}

// Event is a budget that was hit.
type Event struct {
	Budget string // "processes", "memory", "wallTime", "scratch", "disk", "inodes" or "output"
	Count  int64  // times since the last event
	Detail string // one sentence
}

// supervisorTasks is what PID 1 takes of the pids cgroup: threads of Go's
// runtime. The policy's budget is the agent's, so this is added to it.
const supervisorTasks = 8

// shmSize is the size of /dev/shm, in bytes; counted as the agent's memory.
const shmSize = 64 << 20

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (s *Spec) check() error {
	switch {
	case !validName.MatchString(s.Name):
		return fmt.Errorf("name %q; want 1 to 63 of a-z, 0-9 and -, not - first or last", s.Name)
	case s.Policy == nil:
		return errors.New("no policy; there is no default one")
	case s.Guard == nil && s.Policy.Require.Tier != "T4":
		return fmt.Errorf("policy %s requires guard tier %s and no guard is given; use a host where the guard loads, or require T4", s.Policy.Name, s.Policy.Require.Tier)
	}
	for _, e := range slices.Concat(s.Image.Env, s.Env) {
		if !strings.Contains(e, "=") || strings.ContainsRune(e, 0) {
			return fmt.Errorf("environment entry %q; want NAME=value", e)
		}
	}
	return checkTrust(s.TrustPEM)
}

// writes returns the directories of the host's that the agent may write:
// without /tmp, which is memory, and without what another one covers.
func writes(p *policies.Policy) []string {
	var out []string
	for _, w := range slices.Sorted(slices.Values(p.Filesystem.Write)) {
		if under(w, "/tmp") || slices.ContainsFunc(out, func(o string) bool { return under(w, o) }) {
			continue
		}
		out = append(out, w)
	}
	return out
}

func under(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func underAny(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return under(p, d) })
}

// environment merges; later entries win. PATH and HOME are always there.
func environment(s *Spec) []string {
	m := map[string]string{}
	var names []string
	defaults := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home(s), "USER=" + user}
	for _, e := range slices.Concat(defaults, s.Image.Env, trustVars(s), s.Env) {
		k, v, _ := strings.Cut(e, "=")
		if _, ok := m[k]; !ok {
			names = append(names, k)
		}
		m[k] = v
	}
	for i, k := range names {
		names[i] = k + "=" + m[k]
	}
	return names
}

// home is where the agent can write: programs expect that of a home.
func home(s *Spec) string {
	for _, w := range writes(s.Policy) {
		if under(s.Policy.Filesystem.Workdir, w) {
			return w
		}
	}
	return "/tmp"
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v
		}
	}
	return ""
}

// compiled is what a policy becomes inside one image.
type compiled struct {
	spec  confine.Spec
	exec  []string // real paths of all programs that may run
	notes []string // what the policy names and the image lacks
}

// compiler turns a policy into lists of real paths, by looking into the
// mounted sandbox.
type compiler struct {
	v    *view
	s    *Spec
	out  compiled
	dirs []string // real paths of directories whose programs may all run
	seen map[string]bool
}

// compile resolves every path of the policy in the sandbox's own root. Links
// are followed here, so that the launcher can refuse any that appears later.
func compile(v *view, s *Spec, id owner, abi int) (*compiled, error) {
	c := &compiler{v: v, s: s, seen: map[string]bool{}}
	v.own = writes(s.Policy)
	var err error
	if c.out.spec, err = frame(s, id, abi); err != nil {
		return nil, err
	}
	for _, step := range []func() error{c.files, c.entryPoint, c.programs, c.workdir} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	l := &c.out.spec.Landlock
	for _, ps := range []*[]string{&l.Read, &l.Write, &l.Exec, &l.Device, &c.out.exec} {
		*ps = slices.Compact(slices.Sorted(slices.Values(*ps)))
	}
	return &c.out, nil
}

// frame is what of a Spec does not depend on the image's files.
func frame(s *Spec, id owner, abi int) (confine.Spec, error) {
	filter, err := confine.Profile(profileName(s.Policy))
	return confine.Spec{
		Version: confine.Version, Dir: s.Policy.Filesystem.Workdir, UID: id.uid, GID: id.gid, Env: environment(s), Seccomp: filter, Capabilities: s.Policy.Process.Capabilities,
		Landlock: confine.Landlock{ABI: abi}, Limits: rlimits(s.Policy),
	}, err
}

// profileName keeps processes from being made where the policy says so,
// whatever it says about the profile.
func profileName(p *policies.Policy) string {
	if !p.Process.Spawn {
		return "strict"
	}
	return p.Process.Seccomp
}

// rlimits of 1 byte for core dumps, not 0: only 1 also keeps the kernel from
// starting the host's core dump program, as root. Source: fs/coredump.c.
func rlimits(p *policies.Policy) []confine.Limit {
	return []confine.Limit{{Name: "core", Value: 1}, {Name: "nofile", Value: uint64(p.Budgets.OpenFiles)}}
}

// files resolves what may be read and written.
func (c *compiler) files() error {
	l, f := &c.out.spec.Landlock, c.s.Policy.Filesystem
	own := append(writes(c.s.Policy), "/tmp")
	for _, w := range f.Write {
		if !underAny(w, own) {
			return fmt.Errorf("write path %s is not mounted; this is a mistake in the sandbox", w)
		}
	}
	l.Write = writes(c.s.Policy)
	if slices.ContainsFunc(f.Write, func(w string) bool { return under("/tmp", w) || under(w, "/tmp") }) {
		l.Write = append(l.Write, "/tmp", "/dev/shm") // scratch memory, both
	}
	for _, r := range f.Read {
		// The agent may read it anyway, and could make a link of it.
		if underAny(r, l.Write) {
			continue
		}
		e, err := c.v.resolve(r)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			c.note("filesystem.read names %s, which image %s does not have", r, c.s.Image.Ref)
			continue
		}
		if err != nil {
			return err
		}
		if !underAny(e.path, l.Write) {
			l.Read = append(l.Read, e.path)
		}
	}
	if len(c.s.TrustPEM) > 0 && !underAny(trustFile, l.Read) {
		l.Read = append(l.Read, trustFile)
	}
	for _, d := range confine.Devices() {
		if underAny(d, l.Read) {
			l.Device = append(l.Device, d)
		}
	}
	return nil
}

// entryPoint finds the agent's own program, which may always run, with what
// runs it.
func (c *compiler) entryPoint() error {
	argv := slices.Clone(c.s.Image.Entrypoint)
	if len(c.s.Args) > 0 {
		argv = append(argv, c.s.Args...)
	} else {
		argv = append(argv, c.s.Image.Cmd...)
	}
	if len(argv) == 0 {
		return fmt.Errorf("image %s has no entry point; name a program in args", c.s.Image.Ref)
	}
	p, e, err := c.v.lookPath(argv[0], getenv(c.out.spec.Env, "PATH"), c.out.spec.Dir)
	if err != nil {
		return fmt.Errorf("entry point: %w", err)
	}
	argv[0] = p
	c.out.spec.Args = argv
	if err := c.program(e); err != nil {
		return err
	}
	name, script, err := c.v.interpreter(e.path)
	if err != nil || !script || name == "" {
		return err
	}
	e, err = c.v.resolve(name)
	if err != nil {
		return fmt.Errorf("interpreter of %s: %w", p, err)
	}
	return c.program(e)
}

// programs resolves the policy's list.
func (c *compiler) programs() error {
	for _, x := range c.s.Policy.Process.Exec {
		if underAny(x, c.out.spec.Landlock.Write) {
			c.note("process.exec names %s, where the agent can write; executables there never run", x)
			continue
		}
		e, err := c.v.resolve(x)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			c.note("process.exec names %s, which image %s does not have", x, c.s.Image.Ref)
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case e.mode.IsDir() && strings.HasSuffix(x, "/"):
			err = c.folder(e)
		case e.program():
			err = errors.Join(c.program(e), c.pinned(x, e))
		default:
			c.note("process.exec names %s, which is no program in image %s", x, c.s.Image.Ref)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pinned compares a program with the content that the policy expects at x:
// the file that will run, in the mounted root, where nothing can write.
func (c *compiler) pinned(x string, e entry) error {
	want, ok := c.s.Policy.Process.ExecHashes[x]
	if !ok {
		return nil
	}
	f, err := c.v.open(e.path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("program %s of image %s has %s, policy %s wants %s: take the image that the policy was written for, or look at the program and change process.exec", x, c.s.Image.Ref, got, c.s.Policy.Name, want)
	}
	return nil
}

// folder permits everything below a directory: one Landlock rule, and each
// program by itself for the guard.
func (c *compiler) folder(e entry) error {
	c.dirs = append(c.dirs, e.path)
	c.v.loose = c.v.loose || slices.ContainsFunc(c.v.own, func(w string) bool { return under(w, e.path) })
	c.out.spec.Landlock.Exec = append(c.out.spec.Landlock.Exec, e.path)
	return c.v.walk(e.path, c.program)
}

// program permits one program. Its ELF interpreter may be loaded by the
// kernel (Landlock asks for execute there, too) but not be run by itself: it
// is not in the guard's list, or it would run anything it can read.
func (c *compiler) program(e entry) error {
	if c.seen[e.path] {
		return nil
	}
	c.seen[e.path] = true
	if !e.program() {
		return fmt.Errorf("%s is no program: its mode is %v", e.path, e.mode)
	}
	if underAny(e.path, c.out.spec.Landlock.Write) {
		return fmt.Errorf("program %s lies where the agent can write; executables there never run", e.path)
	}
	c.out.exec = append(c.out.exec, e.path)
	if !underAny(e.path, c.dirs) {
		c.out.spec.Landlock.Exec = append(c.out.spec.Landlock.Exec, e.path)
	}
	name, script, err := c.v.interpreter(e.path)
	if err != nil || script || name == "" {
		return err
	}
	ld, err := c.v.resolve(name)
	if err != nil {
		c.note("%s needs %s, which image %s does not have", e.path, name, c.s.Image.Ref)
		return nil
	}
	c.out.spec.Landlock.Exec = append(c.out.spec.Landlock.Exec, ld.path)
	return nil
}

// workdir must be a directory that the agent can be in.
func (c *compiler) workdir() error {
	d := c.s.Policy.Filesystem.Workdir
	e, err := c.v.resolve(d)
	if err != nil {
		return fmt.Errorf("filesystem.workdir: %w; name a folder of the image or a writable one", err)
	}
	if !e.mode.IsDir() {
		return fmt.Errorf("filesystem.workdir %s is no folder", d)
	}
	c.out.spec.Dir = path.Clean(e.path)
	return nil
}

func (c *compiler) note(format string, a ...any) {
	c.out.notes = append(c.out.notes, fmt.Sprintf(format, a...))
}
