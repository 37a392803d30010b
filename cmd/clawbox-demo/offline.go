package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// agentName is the demo's agent.
const agentName = "claw"

// The unlisted host, and the network between it and the appliance.
const (
	vendorHost = "updates.vendor.example"
	vendorAddr = "10.77.0.2"
	applAddr   = "10.77.0.1"
	vendorText = "release notes of the vendor"
)

func (d *demo) answersFile() string { return filepath.Join(d.dist, "answers.yaml") }

// answers are what the wizard would ask for. The agent does its turn and then
// stays, so that the sandbox can be looked at.
var answers = `apiVersion: clawbox.io/v1
kind: Answers
operator: demo
start: none
holdSeconds: 60
hosts: {` + vendorHost + `: ` + vendorAddr + `}
agents:
  - name: ` + agentName + `
    image: openclaw:0.1.0
    policy: openclaw.yaml
    command: [/bin/sh, -c, 'openclaw agent --local --session-id demo --message "Write a report." ; echo "turn ended with $?"; exec sleep infinity']
`

// offline enters a network namespace of its own, with loopback only.
func (d *demo) offline() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.LinkIndex != lo.Attrs().Index {
			return fmt.Errorf("there is a route: %v", r)
		}
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 {
		return fmt.Errorf("want the interface lo only, got %d (%v)", len(links), err)
	}
	_, err = net.DialTimeout("tcp", "192.0.2.1:443", time.Second)
	if !errors.Is(err, syscall.ENETUNREACH) {
		return fmt.Errorf("dialling out: got %v, want ENETUNREACH", err)
	}
	d.say("interfaces: lo; routes: none; dialling out: %v", err)
	return nil
}

// install shows the plan, then carries it out.
func (d *demo) install() error {
	args := []string{"install", d.stick(), "--key", d.pub(), "--answers", d.answersFile()}
	if _, err := d.clawbox(append(args, "--dry-run")...); err != nil {
		return err
	}
	_, err := d.clawbox(args...)
	return err
}

// serve starts the installed program, not the one that was built.
func (d *demo) serve() error {
	log, err := os.Create(filepath.Join(d.dist, "serve.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.bin = filepath.Join(d.host, "usr/local/bin/clawbox")
	cmd := exec.Command(d.bin, "--root", d.host, "serve")
	cmd.Stdout, cmd.Stderr = log, log
	d.say("$ %s &", shell(d.bin, cmd.Args[1:]))
	if err := cmd.Start(); err != nil {
		return err
	}
	d.daemon = cmd
	err = d.until(time.Minute, "the appliance to answer", func() (bool, error) {
		r, err := d.quiet("status")
		return r.code == 0, err
	})
	if err != nil {
		b, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, b)
	}
	_, err = d.clawbox("status")
	return err
}

// turn launches the agent and waits for its answer.
func (d *demo) turn() error {
	if _, err := d.clawbox("agent", "launch", agentName); err != nil {
		return err
	}
	d.say("the agent's output, once its turn has ended:")
	var out string
	err := d.until(4*time.Minute, "the agent's turn to end", func() (bool, error) {
		r, err := d.quiet("agent", "logs", agentName)
		out = r.out
		return strings.Contains(out, "turn ended with"), err
	})
	d.show(out, 30)
	if err != nil {
		return err
	}
	if !contains(out, finalWords, "turn ended with 0") {
		return fmt.Errorf("the agent's turn did not end with %q", finalWords)
	}
	report, err := d.inside("/bin/cat", "/workspace/report.txt")
	if err != nil || report.code != 0 {
		return fmt.Errorf("the tool's file: %v %s", err, report.out)
	}
	d.say("the file that its tool wrote: %s", strings.TrimSpace(report.out))
	d.say("the model calls and the tool's programs, as recorded:")
	if _, err := d.clawbox("audit", "replay", "--agent", agentName, "--kind", "model"); err != nil {
		return err
	}
	// The command that the model asked for runs id; nothing else does.
	for _, want := range []record{{Kind: "exec", Verdict: "allowed", Path: "/id"}, {Kind: "model", Verdict: "allowed", Reason: "infer.usage"}} {
		if err := d.wantRecord(want, 0); err != nil {
			return err
		}
	}
	return nil
}

// inside runs a program in the sandbox, silently.
func (d *demo) inside(args ...string) (result, error) {
	return d.quiet(append([]string{"agent", "connect", agentName, "--"}, args...)...)
}

// vendor is a server in a network namespace of its own.
type vendor struct {
	srv http.Server
	end chan struct{}
}

// openVendor joins this namespace and a new one by a virtual cable, and serves
// HTTP at the other end. The cable is all that leads out of this namespace.
func openVendor() (*vendor, error) {
	v := &vendor{end: make(chan struct{})}
	ready := make(chan error)
	var pid int
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine: it can't go back
		err := unix.Unshare(unix.CLONE_NEWNET)
		pid = unix.Gettid()
		ready <- err
		if err != nil {
			return
		}
		<-ready // the cable is there
		ready <- v.serve()
		<-v.end
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	if err := cable(pid); err != nil {
		close(v.end)
		return nil, err
	}
	ready <- nil
	return v, <-ready
}

// cable makes a veth pair from here into the namespace of thread pid.
func cable(pid int) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vendor0"}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return address("vendor0", applAddr)
}

func address(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr + "/30")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// serve runs on the vendor's thread.
func (v *vendor) serve() error {
	if err := address("eth0", vendorAddr); err != nil {
		return err
	}
	var l net.Listener
	var err error
	// The address is usable a moment after the link comes up.
	for range 50 {
		if l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", vendorAddr+":80"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	v.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, vendorText) })
	go v.srv.Serve(l)
	return nil
}

func (v *vendor) close() {
	v.srv.Close()
	close(v.end)
}
