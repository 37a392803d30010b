package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/internal/ocitree"
)

// The agents: prey runs attacks, and others like it that the themes name; other
// is the neighbour whose data they want, waiter's connections are held, lone may
// start no process.
const (
	prey   = "prey"
	other  = "other"
	waiter = "waiter"
	lone   = "lone"
)

// host is the installed appliance that is attacked.
type host struct {
	ctx    context.Context
	opts   options
	client *control.Client
	daemon *exec.Cmd
	vendor *exec.Cmd
	words  *strings.Replacer
	marks  atomic.Int64
	log    bytes.Buffer // of the daemon
	locks  []*os.File   // held for life
}

func (h *host) at(names ...string) string {
	return filepath.Join(append([]string{h.opts.dir}, names...)...)
}
func (h *host) ledger() string { return h.at("host/var/lib/clawbox/ledger") }

// mark is what the vendor must not see of one attempt.
func (h *host) mark() string { return fmt.Sprintf("leak%d", h.marks.Add(1)) }

// newHost bundles, installs and starts.
func newHost(ctx context.Context, o options) (*host, error) {
	h := &host{ctx: ctx, opts: o}
	var err error
	if h.opts.dist, err = filepath.Abs(o.dist); err != nil {
		return nil, err
	}
	if err := h.clean(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{h.files, h.network, h.listen, h.install, h.serve, h.agents} {
		if err := step(); err != nil {
			return h, err
		}
	}
	return h, nil
}

// clean makes the folder anew. Only one that an earlier run made is deleted,
// and none that a run is using.
func (h *host) clean() error {
	mark := h.at(".clawbox-attack")
	if _, err := os.Stat(h.opts.dir); err == nil {
		if err := h.own(mark, 0); err != nil {
			return fmt.Errorf("%s exists and is not an earlier run's, or a run is using it; choose another -dir: %w", h.opts.dir, err)
		}
	}
	if err := os.RemoveAll(h.opts.dir); err != nil {
		return err
	}
	if err := os.Mkdir(h.opts.dir, 0o755); err != nil {
		return err
	}
	return h.own(mark, os.O_CREATE|os.O_EXCL)
}

// own locks the mark for as long as this process lives.
func (h *host) own(mark string, flags int) error {
	f, err := os.OpenFile(mark, os.O_RDWR|flags, 0o600)
	if err != nil {
		return err
	}
	h.locks = append(h.locks, f)
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// files writes the image, the recipe, the policies and the answers.
func (h *host) files() error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("needs a static busybox for the image (Debian: busybox-static): %w", err)
	}
	tree := map[string]string{
		"bin/busybox": busybox, "bin/sh": busybox, "bin/attack": filepath.Join(h.opts.dist, "attack-inside"),
		"bin/other": filepath.Join(h.opts.dist, "attack-inside"), // in the image, not in the policy
	}
	for _, ld := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"} {
		if _, err := os.Stat(ld); err == nil {
			tree["lib/ld.so"] = ld
		}
	}
	texts := map[string]string{"secret/flag": "the flag\n", "secret/noise": "x\n", "data/good": "permitted\n", "etc/resolv.conf": "nameserver 10.77.0.2\n", "etc/hosts": "127.0.0.1 localhost\n"}
	if err := h.tree(tree, texts); err != nil {
		return err
	}
	if err := ocitree.Write(h.at("image"), os.DirFS(h.at("root")), v1.Config{}); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"recipe.yaml": recipe(h.opts.dist), "answers.yaml": answers, prey + ".yaml": preyPolicy,
	} {
		if err := os.WriteFile(h.at(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tree lays out the image's root, which the control uses as it is.
func (h *host) tree(programs, texts map[string]string) error {
	put := func(name string, b []byte, mode os.FileMode) error {
		to := h.at("root", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, b, mode)
	}
	for name, from := range programs {
		b, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("%w; run 'make attack', which builds it", err)
		}
		if err := put(name, b, 0o755); err != nil {
			return err
		}
	}
	for name, text := range texts {
		if err := put(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// clawbox runs the built program against the host.
func (h *host) clawbox(args ...string) (string, error) {
	c := exec.CommandContext(h.ctx, filepath.Join(h.opts.dist, "clawbox"), append([]string{"--root", h.at("host")}, args...)...)
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("clawbox %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (h *host) install() error {
	for _, args := range [][]string{
		{"key", "generate", "attack", "--out", h.at("attack")},
		{"bundle", "-f", h.at("recipe.yaml"), "-o", h.at("stick"), "--key", h.at("attack.key"), "--store", h.at("store"), "--part-size", "4MiB"},
		{"install", h.at("stick"), "--key", h.at("attack.pub"), "--answers", h.at("answers.yaml")},
	} {
		if _, err := h.clawbox(args...); err != nil {
			return err
		}
	}
	return nil
}

// listen makes the abstract socket that an attack wants to reach.
func (h *host) listen() error {
	l, err := net.Listen("unix", "@clawbox-attack")
	if err == nil {
		context.AfterFunc(h.ctx, func() { l.Close() })
	}
	return err
}

// serve starts the installed appliance and waits until it answers.
func (h *host) serve() error {
	h.daemon = exec.Command(h.at("host/usr/local/bin/clawbox"), "--root", h.at("host"), "serve")
	h.daemon.Stdout, h.daemon.Stderr = &h.log, &h.log
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := h.daemon.Start(); err != nil {
		return err
	}
	h.client = control.Dial(h.at("host/run/clawbox/control.sock"))
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		st, err := h.client.Status(h.ctx)
		if err == nil && st.Error == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the appliance is not ready after a minute: %q (%w)\n%s", st.Error, err, h.log.Bytes())
		}
	}
}

// agents launches the agents and learns what attacks aim at.
func (h *host) agents() error {
	for _, name := range []string{prey, other, waiter, lone} {
		if err := h.launch(name); err != nil {
			return fmt.Errorf("%w\n%s", err, h.log.Bytes())
		}
	}
	o := h.inside(other, "", []string{"write", "/workspace/private"})
	if !o.OK {
		return fmt.Errorf("the neighbour could not write its file: %s", o)
	}
	st, err := h.client.Agent(h.ctx, other)
	if err != nil {
		return err
	}
	private, err := h.find("private")
	if err != nil {
		return err
	}
	h.words = strings.NewReplacer(
		"$HOST", h.at("host"), "$DAEMON", fmt.Sprint(h.daemon.Process.Pid), "$OTHERPID", fmt.Sprint(st.PID),
		"$SERVICES", h.services(), "$PRIVATE", private, "$ECH", echList, "$REGISTRY", registryAddr,
	)
	return nil
}

// services are the host's process ids of the appliance's own processes.
func (h *host) services() string {
	ids := fmt.Sprint(h.daemon.Process.Pid)
	st, err := h.client.Status(h.ctx)
	for _, s := range st.Services {
		if err == nil && s.PID > 0 {
			ids += fmt.Sprint(" ", s.PID)
		}
	}
	return ids
}

// find gives the path of a file of an agent on the host.
func (h *host) find(name string) (found string, err error) {
	err = filepath.WalkDir(h.at("host/var/lib/clawbox"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name && d.Type().IsRegular() {
			found = p
		}
		return nil
	})
	if found == "" {
		found = h.at("host/var/lib/clawbox/agents", other, name)
	}
	return found, err
}

// usage adds up what an agent's files take of the host's disk.
func (h *host) usage(agent string) (n int64, err error) {
	err = filepath.WalkDir(h.at("host/var/lib/clawbox/agents", agent), func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && d.Type().IsRegular() {
			n += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n, err
}

func (h *host) launch(name string) error {
	src, ok := agentPolicies[name]
	if !ok {
		src = preyPolicy
	}
	_, err := h.client.Launch(h.ctx, control.LaunchRequest{
		Name: name, Image: "attack:0.1.0", Policy: name + ".yaml", Source: []byte(src), Command: []string{"/bin/busybox", "sleep", "100000"},
	})
	return err
}

// ready launches an agent again that an attack ended, and gives the ledger's
// size.
func (h *host) ready(agent string) (int64, error) {
	if st, err := h.client.Agent(h.ctx, agent); err != nil || st.State != "running" {
		if err := h.launch(agent); err != nil {
			return 0, err
		}
	}
	s, err := h.client.Status(h.ctx)
	return int64(s.LedgerSize), err
}

// remove ends an agent and deletes what is its.
func (h *host) remove(agent string) error {
	if err := h.client.Stop(h.ctx, agent, control.StopRequest{}); err != nil {
		return err
	}
	return h.client.Remove(h.ctx, agent)
}

func (h *host) expand(args []string) []string {
	var out []string
	for _, a := range args {
		if a == "$SERVICES" { // several arguments
			out = append(out, strings.Fields(h.words.Replace(a))...)
			continue
		}
		out = append(out, h.words.Replace(a))
	}
	return out
}

func (h *host) expandRecords(rs []record) []record {
	out := make([]record, len(rs))
	for i, r := range rs {
		r.Path, r.Host = h.words.Replace(r.Path), h.words.Replace(r.Host)
		out[i] = r
	}
	return out
}

// facts name the machine for the report.
func (h *host) facts() map[string]any {
	var u unix.Utsname
	unix.Uname(&u)
	st, _ := h.client.Status(h.ctx)
	return map[string]any{"kernel": unix.ByteSliceToString(u.Release[:]), "tier": st.Tier, "landlock": st.Landlock, "weakenings": st.Weakenings}
}

// prove verifies the ledger after everything.
func (h *host) prove() error {
	_, err := h.clawbox("audit", "verify")
	return err
}

// close stops everything and removes the folder.
func (h *host) close() error {
	if h.daemon != nil {
		h.daemon.Process.Signal(syscall.SIGTERM)
		h.daemon.Wait()
	}
	if h.vendor != nil {
		h.vendor.Process.Kill()
		h.vendor.Wait()
	}
	if h.opts.keep {
		return os.WriteFile(h.at("serve.log"), h.log.Bytes(), 0o600)
	}
	if err := os.RemoveAll(h.opts.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("left behind: %w", err)
	}
	return nil
}
