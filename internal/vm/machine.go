package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Config describes a machine.
type Config struct {
	Emulator Emulator
	Kernel   Kernel
	Init     string   // the guest's first program, static; see the folder guest
	Modules  []string // beside those that a disk and the command channel need
	Disk     string   // ext4 image for /
	Keep     bool     // what the guest writes to Disk stays there; else it is lost when it ends
	Cmdline  string   // added to the kernel's command line
	CPUs     int      // 0: 2
	Memory   int      // MiB; 0: 2048
	// Boot is the time until the guest must be ready; 0: 3 minutes. A guest
	// under TCG on a busy machine was seen to need 40 s.
	Boot time.Duration
	// Systemd hands the guest over to the disk's /sbin/init, where a unit has to
	// start the program of the folder guest: see Cache.Debian.
	Systemd bool
	// Wire gives the guest one network card, eth0, on a wire that leads nowhere.
	// Each frame that the guest sends is written to this file in the form of pcap.
	Wire string
}

// base are the modules without which a guest has no disk and no channel.
var base = []string{"virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "crc32c-intel", "ext4"}

// Machine is a guest that runs.
type Machine struct {
	cmd    *exec.Cmd
	dir    string
	conn   net.Conn
	in     *bufio.Reader
	mu     sync.Mutex // one command at a time
	qmp    *monitor   // what Plug and Unplug speak to
	exited chan struct{}
}

// Start boots a machine and waits until its guest is ready. ctx bounds the
// boot only; Close ends the machine.
func Start(ctx context.Context, c Config) (*Machine, error) {
	dir, err := os.MkdirTemp("/var/tmp", "clawbox-vm-")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, exited: make(chan struct{})}
	if err := m.boot(ctx, c); err != nil {
		console := m.Console()
		return nil, errors.Join(fmt.Errorf("boot kernel %s: %w\nthe guest's console:\n%s", c.Kernel.Release, err, tail(console, 3000)), m.Close())
	}
	return m, nil
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func (m *Machine) boot(ctx context.Context, c Config) error {
	if c.Boot == 0 {
		c.Boot = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, c.Boot)
	defer cancel()
	names := append(slices.Clone(base), c.Modules...)
	if c.Systemd {
		names = append(names, ofStick...)
	}
	if c.Wire != "" {
		names = append(names, "virtio_net")
	}
	mods, err := c.Kernel.Modules(ctx, names...)
	if err != nil {
		return err
	}
	if err := initramfs(m.path("initrd"), c.Init, mods); err != nil {
		return err
	}
	if err := m.launch(c); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, m.cut)
	defer stop()
	if err := m.dial(ctx); err != nil {
		return err
	}
	var ready Frame
	if err := m.receive(&ready); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	if !ready.Done || ready.Fail != "" {
		return fmt.Errorf("the guest is not ready: %s", ready.Fail)
	}
	return nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// arguments is QEMU's command line; the choice of machine and CPU is the one
// that booted every kernel here in every try.
func (m *Machine) arguments(c Config) []string {
	cpus, mem := max(c.CPUs, 0), c.Memory
	if cpus == 0 {
		cpus = 2
	}
	if mem == 0 {
		mem = 2048
	}
	line := "console=ttyS0 quiet loglevel=4 panic=-1 " + c.Cmdline
	if c.Systemd {
		line += " " + Handover + " net.ifnames=0 systemd.show_status=0"
	}
	snapshot := "on"
	if c.Keep {
		snapshot = "off"
	}
	args := append([]string{
		"-accel", "tcg,thread=multi,tb-size=1024", "-machine", "q35", "-cpu", "max,-avx2",
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(mem), "-nodefaults", "-nic", "none", "-display", "none", "-no-reboot",
		"-chardev", "socket,id=console,path=" + m.path("keys") + ",server=on,wait=off,logfile=" + m.path("console"), "-serial", "chardev:console",
		"-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off", "-device", "qemu-xhci,id=usb",
		"-kernel", c.Kernel.Image, "-initrd", m.path("initrd"), "-append", line,
		"-drive", "if=virtio,format=raw,snapshot=" + snapshot + ",file=" + c.Disk,
		"-device", "virtio-serial", "-chardev", "socket,id=commands,path=" + m.path("commands") + ",server=on,wait=off",
		"-device", "virtserialport,chardev=commands,name=" + Port,
	}, c.Emulator.Args...)
	if c.Wire != "" {
		args = append(args, "-netdev", "hubport,id=wire,hubid=0", "-device", "virtio-net-pci,netdev=wire,romfile=", "-object", "filter-dump,id=tap,netdev=wire,file="+c.Wire)
	}
	return args
}

// launch starts QEMU; it dies with this process.
func (m *Machine) launch(c Config) error {
	log, err := os.Create(m.path("qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd = exec.Command(c.Emulator.Program, m.arguments(c)...)
	m.cmd.Env = append(os.Environ(), c.Emulator.Env...)
	m.cmd.Env = append(m.cmd.Env, "TMPDIR="+m.dir) // the disk's snapshot
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = dieWithParent()
	if err := m.cmd.Start(); err != nil {
		m.cmd = nil
		return err
	}
	go func() {
		m.cmd.Wait()
		close(m.exited)
	}()
	return nil
}

// dial connects to the command channel as soon as QEMU has made it.
func (m *Machine) dial(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", m.path("commands"))
		if err == nil {
			m.conn, m.in = conn, bufio.NewReaderSize(conn, 64<<10)
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-m.exited:
			return m.ended()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ended says why QEMU is gone.
func (m *Machine) ended() error {
	log, err := os.ReadFile(m.path("qemu.log"))
	return errors.Join(fmt.Errorf("QEMU ended: %s: %s", m.cmd.ProcessState, tail(log, 2000)), err)
}

// receive reads one frame.
func (m *Machine) receive(f *Frame) error {
	line, err := m.in.ReadBytes('\n')
	if err != nil {
		select {
		case <-m.exited:
			return errors.Join(err, m.ended())
		case <-time.After(time.Second):
			return err
		}
	}
	if err := json.Unmarshal(line, f); err != nil {
		return fmt.Errorf("the guest sent %q: %w", line, err)
	}
	return nil
}

// Command is a program to run in the guest, as root.
type Command struct {
	Args           []string
	Env            []string // NAME=value, beside the guest's own
	Dir            string
	Limit          time.Duration // the guest kills its process group then; 0: none
	Stdout, Stderr io.Writer     // nil: thrown away
}

// Run runs a command and gives its exit status: 128 and the signal's number
// when one ended it. When ctx ends first the machine is cut off: what a guest
// does is not stopped half-way.
func (m *Machine) Run(ctx context.Context, c Command) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stop := context.AfterFunc(ctx, m.cut)
	defer stop()
	b, err := json.Marshal(Frame{Args: c.Args, Env: c.Env, Dir: c.Dir, Limit: int(c.Limit.Seconds())})
	if err != nil {
		return 0, err
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return 0, errors.Join(err, context.Cause(ctx))
	}
	for {
		var f Frame
		if err := m.receive(&f); err != nil {
			return 0, fmt.Errorf("while %q ran: %w\nthe guest's console:\n%s", c.Args, errors.Join(err, context.Cause(ctx)), tail(m.Console(), 3000))
		}
		if err := errors.Join(pass(c.Stdout, f.Out), pass(c.Stderr, f.Err)); err != nil {
			return 0, err
		}
		switch {
		case f.Fail != "":
			return 0, fmt.Errorf("%q in the guest: %s", c.Args, f.Fail)
		case f.Done:
			return f.Code, nil
		}
	}
}

func pass(w io.Writer, b []byte) error {
	if w == nil || len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// Output runs a command and gives what it printed on both streams; a status
// other than 0 is an error.
func (m *Machine) Output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	code, err := m.Run(ctx, Command{Args: args, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("%q in the guest: status %d: %s", args, code, out.Bytes())
	}
	return out.String(), err
}

// Console is what the guest's kernel printed so far.
func (m *Machine) Console() []byte {
	b, _ := os.ReadFile(m.path("console"))
	return b
}

// Pull cuts the power at once: what the guest had not written to its disk is lost.
// Close is still to be called.
func (m *Machine) Pull() { m.cut() }

// cut is the power cut.
func (m *Machine) cut() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
	}
}

// Close cuts the power and removes what the machine left on the host.
func (m *Machine) Close() error {
	m.cut()
	if m.cmd != nil {
		<-m.exited
	}
	if m.conn != nil {
		m.conn.Close()
	}
	if m.qmp != nil {
		m.qmp.conn.Close()
	}
	return os.RemoveAll(m.dir)
}
