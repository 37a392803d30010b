package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/control"
)

// world is what an appliance's agents may reach: another network namespace
// than the appliance's, joined to it by a cable.
type world struct {
	*journey
	appliance, outside *os.File // network namespaces
	open               atomic.Int64

	mu   sync.Mutex // guards the rest
	said []string   // Authorization headers that the TLS server got
}

const (
	hereIP, thereIP = "203.0.113.1", "203.0.113.2"
	secretValue     = "s3cret-of-the-site"
	worldPolicy     = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: busy}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/caller], spawn: true, seccomp: default}
network:
  default: deny
  allow:
    - {host: 203.0.113.2, ports: [7000]}
    - {host: site.example, ports: [443], inspect: true, protocol: http, access: full, credentials: [site]}
    - {host: other.example, ports: [443], inspect: true, protocol: http, access: full}
credentials:
  - {name: site, env: SITE_TOKEN}
budgets: {processes: 32, memory: 256MiB, wallTime: 10m}
`
)

// newWorld installs a release, and starts its appliance in a network of its
// own with one neighbour.
func newWorld(t *testing.T) *world {
	w := &world{journey: newRelease(t, "caller", worldPolicy)}
	w.write("answers.yaml", answersText+"hosts: {site.example: "+thereIP+", other.example: "+thereIP+"}\n")
	w.install()
	w.write("site.key", secretValue+"\n")
	w.check(os.Chmod(w.at("site.key"), 0o600))
	f, err := os.OpenFile(filepath.Join(w.host, "etc/clawbox/appliance.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	w.check(err)
	_, err = fmt.Fprintf(f, "credentials: {site: {keyFile: %s}}\n", w.at("site.key"))
	w.check(err)
	w.check(f.Close())
	w.lay()
	w.serveThere()
	w.begin()
	w.ok("agent", "launch", "busy")
	return w
}

// lay makes the two namespaces and the cable.
func (w *world) lay() {
	w.t.Helper()
	w.appliance, w.outside = newNet(w.t), newNet(w.t)
	w.in(w.appliance, func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "in", PeerNamespace: netlink.NsFd(int(w.outside.Fd()))}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("a cable (veth): %w", err)
		}
		return plug("out", hereIP)
	})
	w.in(w.outside, func() error { return plug("in", thereIP) })
}

// plug gives a link its address, and brings it and lo up.
func plug(name, ip string) error {
	for _, n := range []string{"lo", name} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if n == name {
			a, err := netlink.ParseAddr(ip + "/24")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return nil
}

// newNet makes a network namespace that lasts as long as the test.
func newNet(t *testing.T) (f *os.File) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("a network namespace: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// in runs f in a namespace, on this goroutine.
func (w *world) in(ns *os.File, f func() error) {
	w.t.Helper()
	runtime.LockOSThread()
	old, err := os.Open("/proc/thread-self/ns/net")
	w.check(err)
	defer old.Close()
	w.check(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET))
	err = f()
	w.check(unix.Setns(int(old.Fd()), unix.CLONE_NEWNET))
	runtime.UnlockOSThread()
	w.check(err)
}

// serveOutside starts an echo server and a TLS server outside.
func (w *world) serveThere() {
	w.t.Helper()
	cert := w.certificate()
	w.in(w.outside, func() error {
		l, err := net.Listen("tcp", thereIP+":7000")
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go w.echo(l)
		s, err := tls.Listen("tcp", thereIP+":443", &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { s.Close() })
		go http.Serve(s, http.HandlerFunc(w.site))
		return nil
	})
}

func (w *world) echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		w.open.Add(1)
		go func() {
			_, _ = io.Copy(c, c)
			c.Close()
			w.open.Add(-1)
		}()
	}
}

// site repeats what it was told, as careless servers do.
func (w *world) site(rw http.ResponseWriter, q *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := q.Header.Get("Authorization")
	w.said = append(w.said, got)
	fmt.Fprintf(rw, "%s heard %s", q.Host, got)
}

// certificate is the site's, which the appliance's host trusts.
func (w *world) certificate() tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "site"}, DNSNames: []string{"site.example", "other.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	w.check(err)
	w.write("roots.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// roots is where this host's certificate authorities are.
const roots = "/etc/ssl/certs/ca-certificates.crt"

// begin starts the appliance in its network, trusting the site.
func (w *world) begin() *exec.Cmd {
	w.t.Helper()
	if _, err := os.Stat(roots); err != nil {
		w.t.Skipf("needs a file of authorities to put the test's in place of (Debian: ca-certificates): %v", err)
	}
	cmd := exec.Command("/bin/sh", "-c", `mount --bind "$0" `+roots+` && exec "$@"`,
		w.at("roots.pem"), filepath.Join(w.host, "usr/local/bin/clawbox"), "--root", w.host, "serve")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	w.in(w.appliance, func() error { w.start(cmd); return nil })
	return cmd
}

func (w *world) client() *control.Client {
	return control.Dial(filepath.Join(w.host, "run/clawbox/control.sock"))
}

// TestWayOut is what an agent's connections meet, in a whole appliance.
func TestWayOut(t *testing.T) {
	w := newWorld(t)
	t.Run("connections", func(t *testing.T) { w.as(t).connections() })
	t.Run("local servers", func(t *testing.T) { w.as(t).locals() })
	t.Run("credentials", func(t *testing.T) { w.as(t).credentials() })
	t.Run("reload", func(t *testing.T) { w.as(t).reloads() })
}

// as makes failures belong to a subtest.
func (w *world) as(t *testing.T) *world {
	w.t = t
	return w
}

// connections reports what new ones take: the time is the machine's as it is.
func (w *world) connections() {
	out := w.does("caller dial 203.0.113.2:7000 300")
	w.t.Logf("a new connection, nanoseconds (median, p99): %s", out)
	w.recorded("203.0.113.2")
}

// does runs a script in the sandbox that has to succeed.
func (w *world) does(script string) string {
	w.t.Helper()
	out, code := w.inside(script)
	if code != 0 {
		w.t.Fatalf("%s: status %d\n%s", script, code, out)
	}
	return out
}

// locals: an agent reaches its own servers on loopback; where none of its own
// listens the way out still refuses, also what listens on the host.
func (w *world) locals() {
	for _, at := range []string{"127.0.0.1:8080", "[::1]:8081", "0.0.0.0:8082"} {
		if out := w.does("caller local " + at); !strings.HasPrefix(out, "reached") {
			w.t.Errorf("an own server at %s: %s", at, out)
		}
	}
	for _, to := range []string{"127.0.0.1:8080", "127.0.0.1:5917"} {
		if out, code := w.inside("caller dial " + to + " 1"); code == 0 {
			w.t.Errorf("%s, where nothing of the agent listens: %s", to, out)
		}
	}
	w.recorded("127.0.0.1:5917")
}

// credentials: the site gets the value, over TLS that was opened and closed
// again on the way; the agent, and the ledger, never have it, and no other
// place gets even the placeholder.
func (w *world) credentials() {
	if out := w.does("echo $SITE_TOKEN"); len(strings.TrimSpace(out)) < 16 || strings.Contains(out, secretValue) {
		w.t.Errorf("the agent holds %q, want a placeholder", out)
	}
	out := w.does("caller get https://site.example/ SITE_TOKEN")
	if !strings.HasPrefix(out, "200 site.example heard ") || strings.Contains(out, secretValue) {
		w.t.Errorf("the site's answer: %q, want it with the value masked", out)
	}
	out = w.does("caller get https://other.example/ SITE_TOKEN")
	if !strings.HasPrefix(out, "403 ") || !strings.Contains(out, "net.credential") {
		w.t.Errorf("another site's answer: %q, want 403 net.credential", out)
	}
	w.mu.Lock()
	heard := strings.Join(w.said, "|")
	w.mu.Unlock()
	if heard != "Bearer "+secretValue {
		w.t.Errorf("the sites heard %q, want the value once", heard)
	}
	w.recorded("net.credential")
	if out := w.ok("audit", "replay", "-o", "json"); strings.Contains(out, secretValue) || !strings.Contains(out, `"site"`) {
		w.t.Error("the ledger has the value, or doesn't name the credential")
	}
}

// reloads: what a policy no longer allows is closed when the reload answers.
func (w *world) reloads() {
	narrow := []byte(strings.Replace(worldPolicy, "    - {host: 203.0.113.2, ports: [7000]}\n", "", 1))
	ctx := context.Background()
	var all []time.Duration
	for range 5 {
		_, err := w.client().SetPolicy(ctx, "busy", control.PolicyRequest{Name: "busy.yaml", Source: []byte(worldPolicy)})
		w.check(err)
		done := make(chan int)
		go func() {
			cmd := exec.Command(w.at("clawbox"), "--root", w.host, "agent", "connect", "busy", "--", "/bin/caller", "keep", "203.0.113.2:7000", "50")
			_ = cmd.Run() // the connections are counted at their other end
			done <- cmd.ProcessState.ExitCode()
		}()
		w.wait("50 connections", func() bool { return w.open.Load() == 50 })
		start := time.Now()
		_, err = w.client().SetPolicy(ctx, "busy", control.PolicyRequest{Name: "busy.yaml", Source: narrow})
		w.check(err)
		all = append(all, time.Since(start))
		w.wait("their end", func() bool { return w.open.Load() == 0 })
		if code := <-done; code != 0 {
			w.t.Errorf("the agent's program ended with %d", code)
		}
		if out, code := w.inside("caller dial 203.0.113.2:7000 1"); code == 0 {
			w.t.Errorf("a new connection after the reload: %s", out)
		}
	}
	w.t.Logf("a reload that closes 50 connections, until it is answered: %v", all)
}
