package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/internal/vm"
)

// life is one machine's.
type life struct {
	o      options
	conf   vm.Config
	sticks sticks
	name   string

	m     *vm.Machine
	sent  []string // frames of the boots before
	begun time.Time
}

// cutPoints are the steps of an upgrade, in the words that it says when they are
// done: that is when the power is cut.
var cutPoints = []string{"Fill the other slot", "Keep the state", "Carry agents over", "Start the release", "Prove that it works"}

// versions of the releases.
const (
	first  = "site 0.1.0"
	second = "site 0.2.0"
)

// live goes through all phases. Each prints how long it took.
func (l *life) live(ctx context.Context) error {
	l.begun = time.Now()
	for _, p := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"boot a fresh machine", l.boot},
		{"plug the stick, answer the wizard", l.install},
		{"the agent is governed", l.governed},
		{"cut the power, boot: it starts by itself", l.again},
		{"upgrade from a second stick", l.upgrade},
		{"a broken stick is returned from", l.broken},
		{"roll back by hand", l.rollback},
		{"cut the power in mid-upgrade", l.cuts},
		{"force every timer", l.timers},
		{"uninstall, nothing stays", l.uninstall},
		{"the wire", l.wire},
	} {
		start := time.Now()
		err := p.do(ctx)
		fmt.Printf("%-5s %-45s %5.0f s  %s\n", l.name, p.name, time.Since(start).Seconds(), verdict(err))
		if err != nil {
			return fmt.Errorf("%s: %w\nthe machine's journal:\n%s", p.name, err, l.journal(ctx))
		}
	}
	fmt.Printf("%-5s %-45s %5.0f s\n", l.name, "all", time.Since(l.begun).Seconds())
	return nil
}

// journal is the end of what the service said.
func (l *life) journal(ctx context.Context) string {
	if l.m == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, _ := l.m.Output(ctx, "/bin/journalctl", "-u", "clawbox", "-n", "60", "--no-pager", "-o", "short-monotonic") // a machine that is off says nothing
	return out
}

func verdict(err error) string {
	if err != nil {
		return "FAILED"
	}
	return "ok"
}

// boot starts the machine and gives it the wire: an address, and a way out that
// leads nowhere, so that whatever it tries leaves by the card and is seen. The
// card has no IPv6, because then the kernel itself reports its multicast groups.
func (l *life) boot(ctx context.Context) (err error) {
	if l.m, err = vm.Start(ctx, l.conf); err != nil {
		return err
	}
	_, err = l.m.Output(ctx, "/bin/sh", "-ec", `echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set eth0 up
ip address add 192.0.2.2/24 dev eth0
ip neighbour add 192.0.2.1 lladdr 52:54:00:00:00:01 dev eth0 nud permanent
ip route add default via 192.0.2.1`)
	return err
}

// end ends the machine, and keeps the account of what it sent.
func (l *life) end() error {
	if l.m == nil {
		return nil
	}
	if l.o.verbose {
		fmt.Printf("the console of %s showed:\n%s\n", l.name, l.m.Console())
	}
	err := l.m.Close()
	l.m = nil
	out, ferr := frames(l.conf.Wire)
	l.sent = append(l.sent, out...)
	return errors.Join(err, ferr)
}

// again cuts the power, boots, and waits for the appliance.
func (l *life) again(ctx context.Context) error {
	if err := errors.Join(l.end(), l.boot(ctx)); err != nil {
		return err
	}
	return l.healthy(ctx)
}

// sh runs a script in the machine and gives what it printed.
func (l *life) sh(ctx context.Context, script string) (string, int, error) {
	var out bytes.Buffer
	code, err := l.m.Run(ctx, vm.Command{Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out, Limit: 10 * time.Minute})
	if l.o.verbose {
		fmt.Printf("+ %s\n%s(status %d)\n", script, out.Bytes(), code)
	}
	return out.String(), code, err
}

// ok wants status 0, and words in what is printed.
func (l *life) ok(ctx context.Context, script string, want ...string) (string, error) {
	return l.ends(ctx, 0, script, want...)
}

func (l *life) ends(ctx context.Context, status int, script string, want ...string) (string, error) {
	out, code, err := l.sh(ctx, script)
	if err != nil {
		return out, err
	}
	if code != status {
		return out, fmt.Errorf("%q ended with status %d, want %d:\n%s", script, code, status, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			return out, fmt.Errorf("%q does not say %q, but\n%s", script, w, out)
		}
	}
	return out, nil
}

// plug plugs a stick in and mounts it as an operator would.
func (l *life) plug(ctx context.Context, name, image string) error {
	if err := l.m.Plug(name, image); err != nil {
		return err
	}
	_, err := l.ok(ctx, there(name)+" && mkdir -p /mnt/"+name+" && mount -o ro "+device(name)+" /mnt/"+name)
	return err
}

// device is where a stick is found by its label, and there a script that waits
// for it: the kernel sees it some seconds after it was plugged in.
func device(stick string) string { return "/dev/disk/by-label/" + strings.ToUpper(stick) }

func there(stick string) string {
	return "for i in $(seq 300); do [ -e " + device(stick) + " ] && break; sleep 0.2; done; [ -e " + device(stick) + " ]"
}

func (l *life) unplug(ctx context.Context, name string) error {
	if _, err := l.ok(ctx, "umount /mnt/"+name); err != nil {
		return err
	}
	return l.m.Unplug(name)
}

// pace is how long a person takes to look where an Enter has led, on a machine
// that is twenty times slower than another.
const pace = 2 * time.Second

// key is one thing that the operator sees, and what is typed then.
type key struct{ see, press string }

// install is done at the console: the operator mounts the stick, starts the
// installer and answers its wizard.
func (l *life) install(ctx context.Context) error {
	if err := l.m.Plug("site1", l.sticks.one); err != nil {
		return err
	}
	if _, err := l.ok(ctx, "cat > /root/site.pub <<'END'\n"+string(l.sticks.key)+"END\n"+there("site1")); err != nil {
		return err
	}
	c, err := l.m.Sit()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	if err := c.Type("\r"); err != nil {
		return err
	}
	keys := []key{
		{"operator# ", "mkdir -p /mnt/site1 && mount -o ro " + device("site1") + " /mnt/site1 && clear\r"},
		{"operator# ", "/mnt/site1/clawbox-installer install /mnt/site1 --key /root/site.pub; echo the installer ended with status $?\r"},
		{"Your name", "\r\rAnn Operator\r\r"},
		{"Agents that", "\r"},
		{"Policy of", "\r"},
		{"Names that", "\r"},
	}
	if l.name == "6.1" { // its Landlock can't keep files from being truncated
		keys = append(keys, key{"for good?", "y"})
	}
	keys = append(keys, key{"Install this?", "y"}, key{"ended with status ", ""})
	for _, k := range keys {
		if _, err := c.Await(ctx, k.see); err != nil {
			return err
		}
		for press := range strings.SplitAfterSeq(k.press, "\r") { // as fast as a person
			if err := c.Type(press); err != nil {
				return err
			}
			time.Sleep(pace)
		}
	}
	if end, err := c.Await(ctx, "operator#"); err != nil || !strings.HasPrefix(strings.TrimSpace(end), "0") {
		return errors.Join(fmt.Errorf("the installer ended with status %q, want 0; the console showed\n%s", end, c.Shown()), err)
	}
	if l.o.verbose {
		fmt.Printf("the operator saw\n%s\n", c.Shown())
	}
	if _, err := l.ok(ctx, "systemctl is-active clawbox && systemctl is-enabled clawbox", "active", "enabled"); err != nil {
		return err
	}
	if err := l.unplug(ctx, "site1"); err != nil {
		return err
	}
	if err := l.healthy(ctx); err != nil {
		return err
	}
	if _, err := l.ok(ctx, "clawbox agent launch busy"); err != nil {
		return err
	}
	// The power is cut soon. What nobody has flushed may be lost then, and the
	// agent's disk is a file on the machine's: first the one, then the other.
	_, err = l.ok(ctx, inside("echo kept > /workspace/kept")+" && sync && sync")
	return err
}

// inside is a command line that runs a script in the agent's sandbox.
func inside(script string) string {
	return "clawbox agent connect busy -- /bin/sh -c '" + script + "'"
}

// healthy waits for the appliance.
func (l *life) healthy(ctx context.Context) error {
	_, err := l.ok(ctx, "for i in $(seq 180); do clawbox status >/tmp/status 2>&1 && break; sleep 1; done; cat /tmp/status; clawbox status >/dev/null || { journalctl -u clawbox -n 60 --no-pager; exit 1; }")
	return err
}

// runs reads which release it is from what status says, whose last change may name
// another.
func runs(status, release string) bool {
	line, _, _ := strings.Cut(status, "\n")
	return strings.HasPrefix(line, "release ") && strings.Contains(line, release)
}

// whole says that the machine runs this release, its agent has its files, the
// record is unbroken, and nothing is wrong.
func (l *life) whole(ctx context.Context, release, processes string) error {
	if out, err := l.ok(ctx, "clawbox status"); err != nil {
		return err
	} else if !runs(out, release) {
		return fmt.Errorf("want %s to run, got\n%s", release, out)
	}
	if out, err := l.ok(ctx, "clawbox agent status busy"); err != nil {
		return err
	} else if !strings.Contains(out, "running") {
		if _, err := l.ok(ctx, "clawbox agent launch busy"); err != nil {
			return err
		}
	}
	for _, c := range []struct{ do, want string }{
		{inside("busybox cat /workspace/kept"), "kept"},
		{"grep processes: /opt/clawbox/current/policies/busy.yaml", "processes: " + processes},
		{"clawbox audit verify", ""},
		{"clawbox doctor", ""},
	} {
		if _, err := l.ok(ctx, c.do, c.want); err != nil {
			return err
		}
	}
	return nil
}

// governed lets the agent try what it must not, and looks for the record.
func (l *life) governed(ctx context.Context) error {
	for _, c := range []struct{ script, want, record string }{
		{"busybox cat /var/lib/clawbox/keys/ledger.key", "No such file", "ledger.key"},
		{"echo x > /bin/planted", "Read-only", "/bin/planted"},
		{"/bin/other true", "ermission denied", "/bin/other"},
		{"busybox cp /bin/busybox /workspace/b && /workspace/b true", "ermission denied", "/workspace/b"},
		{"busybox mount -t tmpfs none /tmp", "ermission denied", "mount refused"},
		{"probe http://203.0.113.9/", "net.", "203.0.113.9"},
		{"probe http://192.0.2.1/", "net.", "192.0.2.1"},
		{"probe http://169.254.169.254/", "net.", "169.254.169.254"},
	} {
		out, _, err := l.sh(ctx, inside(c.script))
		if err != nil {
			return err
		}
		if !strings.Contains(out, c.want) {
			return fmt.Errorf("%q in the sandbox said %q, want a refusal with %q", c.script, out, c.want)
		}
		if _, err := l.ok(ctx, "for i in $(seq 60); do clawbox audit replay --agent busy --verdict denied > /tmp/replay && grep -F '"+c.record+"' /tmp/replay && exit 0; sleep 0.5; done; tail -5 /tmp/replay; exit 1"); err != nil {
			return fmt.Errorf("%q left no record: %w", c.script, err)
		}
	}
	_, err := l.ok(ctx, "clawbox audit verify")
	return err
}

func (l *life) upgrade(ctx context.Context) error {
	if err := l.plug(ctx, "site2", l.sticks.two); err != nil {
		return err
	}
	if _, err := l.ok(ctx, "clawbox upgrade /mnt/site2 --deadline 10m", "site 0.2.0"); err != nil {
		return err
	}
	return l.whole(ctx, second, "33")
}

// broken is told of a release whose program ends at once.
func (l *life) broken(ctx context.Context) error {
	if err := l.plug(ctx, "site3", l.sticks.broken); err != nil {
		return err
	}
	if _, err := l.ends(ctx, 7, "clawbox upgrade /mnt/site3 --deadline 2m"); err != nil {
		return err
	}
	if err := l.healthy(ctx); err != nil {
		return err
	}
	if _, err := l.ok(ctx, "clawbox audit replay --kind install --verdict denied", "was taken back"); err != nil {
		return err
	}
	return l.whole(ctx, second, "33")
}

func (l *life) rollback(ctx context.Context) error {
	if _, err := l.ok(ctx, "clawbox rollback --deadline 10m", "site 0.1.0"); err != nil {
		return err
	}
	return l.whole(ctx, first, "32")
}

// cuts cuts the power after each of these steps of an upgrade, and finds one of the two
// releases, whole.
func (l *life) cuts(ctx context.Context) error {
	for _, point := range cutPoints[:min(l.o.cuts, len(cutPoints))] {
		start := time.Now()
		now, err := l.cut(ctx, point)
		fmt.Printf("%-5s   %-43s %5.0f s  %s\n", l.name, fmt.Sprintf("after %q", point), time.Since(start).Seconds(), now)
		if err != nil {
			return fmt.Errorf("after %q: %w", point, err)
		}
	}
	return nil
}

func (l *life) cut(ctx context.Context, point string) (now string, err error) {
	if err := l.plugged(ctx); err != nil {
		return "", err
	}
	w := &trigger{text: point, pull: l.m.Pull}
	_, err = l.m.Run(ctx, vm.Command{Args: []string{"clawbox", "upgrade", "/mnt/site2", "--deadline", "10m"}, Stdout: w, Stderr: w})
	if !w.pulled() {
		return "", fmt.Errorf("the upgrade has ended (%v) before it said that; it said\n%s", err, w.said())
	}
	if err := l.again(ctx); err != nil {
		return "", err
	}
	out, err := l.ok(ctx, "clawbox status")
	if err != nil {
		return "", err
	}
	if runs(out, second) {
		if err := l.whole(ctx, second, "33"); err != nil {
			return second, err
		}
		_, err := l.ok(ctx, "clawbox rollback --deadline 10m", first)
		return second + ", then back by hand", errors.Join(err, l.whole(ctx, first, "32"))
	}
	return first, l.whole(ctx, first, "32")
}

// plugged plugs the second stick in, if the machine has booted without it.
func (l *life) plugged(ctx context.Context) error {
	if _, code, err := l.sh(ctx, "mountpoint -q /mnt/site2"); err != nil || code == 0 {
		return err
	}
	return l.plug(ctx, "site2", l.sticks.two)
}

// trigger pulls when a text has come by.
type trigger struct {
	text string
	pull func()

	mu   sync.Mutex
	b    bytes.Buffer
	done bool
}

var _ io.Writer = (*trigger)(nil)

func (t *trigger) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(b)
	if !t.done && strings.Contains(t.b.String(), t.text) {
		t.done = true
		t.pull()
	}
	return len(b), nil
}

func (t *trigger) pulled() bool { t.mu.Lock(); defer t.mu.Unlock(); return t.done }
func (t *trigger) said() string { t.mu.Lock(); defer t.mu.Unlock(); return t.b.String() }

// timers starts what systemd would start at some hour, and gives the appliance's
// own ticks, of which none is longer than a minute, their time.
func (l *life) timers(ctx context.Context) error {
	_, err := l.ok(ctx, "set -e; ts=$(systemctl list-timers --all --plain --no-legend | awk '{print $NF}'); [ -n \"$ts\" ]; for t in $ts; do systemctl start \"$t\" || systemctl status --no-pager \"$t\" | head -5; done; sleep 75")
	if err != nil {
		return err
	}
	return l.healthy(ctx)
}

// uninstall leaves nothing but, without --purge, the record.
func (l *life) uninstall(ctx context.Context) error {
	if _, err := l.ok(ctx, "clawbox uninstall --operator Ann"); err != nil {
		return err
	}
	if _, err := l.ok(ctx, "ls /var/lib/clawbox/ledger && ! systemctl is-active clawbox && ! command -v clawbox"); err != nil {
		return err
	}
	if err := l.plugged(ctx); err != nil {
		return err
	}
	_, err := l.ok(ctx, "/mnt/site2/clawbox-installer uninstall --purge && ! ls -d /var/lib/clawbox /opt/clawbox /etc/clawbox /run/clawbox /etc/systemd/system/clawbox.service 2>/dev/null")
	return err
}

// wire wants no frame from all of this, and one when one is sent.
func (l *life) wire(ctx context.Context) error {
	now, err := frames(l.conf.Wire)
	if err != nil {
		return err
	}
	if all := append(l.sent, now...); len(all) > 0 {
		return fmt.Errorf("the machine has sent %d frames: %s", len(all), strings.Join(all, "; "))
	}
	if _, err := l.ok(ctx, "bash -c 'echo here > /dev/udp/192.0.2.1/9'"); err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if now, err = frames(l.conf.Wire); err != nil || len(now) > 0 || time.Now().After(end) {
			break
		}
	}
	if err == nil && len(now) == 0 {
		err = errors.New("a datagram was sent on purpose, and the wire has seen none: it can't be trusted")
	}
	return err
}
