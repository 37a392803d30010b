package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// record describes a ledger entry that must exist. Path and Host match a part.
type record struct {
	Kind, Verdict, Reason, Path, Host string
}

func (r record) matches(e ledger.Record) bool {
	return string(e.Kind) == r.Kind && string(e.Verdict) == r.Verdict &&
		(r.Reason == "" || strings.HasPrefix(e.Reason, r.Reason)) &&
		strings.Contains(e.Path, r.Path) && strings.Contains(e.Host, r.Host)
}

// wantRecord finds a record of the agent's from entry from on, waiting a
// little for it, and prints it as replay would.
func (d *demo) wantRecord(want record, from int64) error {
	return d.until(5*time.Second, fmt.Sprintf("a ledger record %+v", want), func() (bool, error) {
		for e, err := range ledger.Read(d.ledger(), from) {
			if err != nil {
				return false, err
			}
			if e.Record.Agent == agentName && want.matches(e.Record) {
				var b strings.Builder
				err := ledger.Replay(&b, func(yield func(ledger.Entry, error) bool) { yield(e, nil) })
				fmt.Fprintf(d.w, "     ledger: %s", b.String())
				return true, err
			}
		}
		return false, nil
	})
}

func (d *demo) ledger() string { return filepath.Join(d.host, "var/lib/clawbox/ledger") }

// size is the number of ledger entries now.
func (d *demo) size() (int64, error) {
	var n int64
	for _, err := range ledger.Read(d.ledger(), 0) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// attack is one attempt from inside. It has succeeded, and the demo failed,
// when its program prints PWNED or the record is missing.
type attack struct {
	title  string
	args   []string
	record record
}

// sh and node are how the attacks run: with programs that the policy allows.
func sh(script string) []string   { return []string{"/bin/sh", "-c", script} }
func bash(script string) []string { return []string{"/bin/bash", "-c", script} }
func node(script string) []string { return []string{"/usr/local/bin/node", "-e", script} }

// fetch is a node script that tries a URL and prints PWNED when it answers well.
func fetch(url string) []string {
	return node(`fetch("` + url + `",{signal:AbortSignal.timeout(8000)}).then(r=>console.log(r.ok?"PWNED":"refused: "+r.status),e=>console.log("refused:",e.cause?.code??e.name))`)
}

func (d *demo) attackList() []attack {
	secret := filepath.Join(d.host, "var/lib/clawbox/keys/ledger.key")
	daemon := strconv.Itoa(d.daemon.Process.Pid)
	return []attack{
		{"read the ledger's key on the host", sh("cat " + secret + " && echo PWNED"), record{Kind: "file", Verdict: "denied", Path: secret}},
		{"look into root's home", sh("ls /root && echo PWNED"), record{Kind: "file", Verdict: "denied", Path: "/root"}},
		{"plant a program in /usr/bin", sh("echo x > /usr/bin/backdoor && echo PWNED"), record{Kind: "file", Verdict: "denied", Path: "/usr/bin/backdoor"}},
		{"read the control socket's folder", sh("ls " + d.host + "/run/clawbox && echo PWNED"), record{Kind: "file", Verdict: "denied", Path: "/run/clawbox"}},
		{"run curl", sh("curl --version && echo PWNED"), record{Kind: "exec", Verdict: "denied", Path: "/curl"}},
		{"run nc", sh("nc -h && echo PWNED"), record{Kind: "exec", Verdict: "denied", Path: "/nc"}},
		{"run ssh", sh("ssh -V && echo PWNED"), record{Kind: "exec", Verdict: "denied", Path: "/ssh"}},
		{"run a copy of curl from the workspace", sh("cp /usr/bin/curl /workspace/c && chmod +x /workspace/c && /workspace/c --version && echo PWNED"), record{Kind: "exec", Verdict: "denied", Path: "/workspace/c"}},
		{"run curl through the dynamic linker", bash("/lib64/ld-linux-x86-64.so.2 /usr/bin/curl --version && echo PWNED"), record{Kind: "exec", Verdict: "denied", Path: "ld-linux"}},
		{"kill the daemon that governs it", sh("kill -9 " + daemon + " && echo PWNED"), record{Kind: "kernel", Verdict: "denied", Reason: "kernel.esrch"}},
		{"reach the appliance's registry", fetch("http://127.0.0.1:5000/v2/"), record{Kind: "connect", Verdict: "denied", Reason: "net.", Host: "127.0.0.1"}},
		{"reach a metadata service", fetch("http://169.254.169.254/latest/meta-data/"), record{Kind: "connect", Verdict: "denied", Reason: "net.", Host: "169.254.169.254"}},
		{"reach a host that the policy denies", fetch("https://drop.exfil.example/"), record{Kind: "dns", Verdict: "denied", Host: "drop.exfil.example"}},
		{"use a model that it was not given", node(`fetch("http://inference.local/v1/chat/completions",{method:"POST",headers:{"content-type":"application/json"},body:JSON.stringify({model:"gpt-5",messages:[{role:"user",content:"hi"}]})}).then(async r=>console.log(r.ok?"PWNED":"refused: "+r.status+" "+await r.text()))`), record{Kind: "model", Verdict: "denied"}},
	}
}

// attacks runs the list.
func (d *demo) attacks() (err error) {
	if d.attacked, err = d.size(); err != nil {
		return err
	}
	for _, a := range d.attackList() {
		if err := d.attack(a); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) attack(a attack) error {
	from, err := d.size()
	if err != nil {
		return err
	}
	d.say("* %s", a.title)
	r, err := d.inside(a.args...)
	if err != nil {
		return err
	}
	d.show(r.out, 4)
	if strings.Contains(r.out, "PWNED") {
		return fmt.Errorf("the attack succeeded: %s", a.title)
	}
	if strings.TrimSpace(r.out) == "" && r.code == 0 {
		return fmt.Errorf("the attack neither failed nor said anything: %s", a.title)
	}
	return d.wantRecord(a.record, from)
}

// forkBomb starts one, and shows that the budget holds, that the host goes on,
// and that stopping the agent ends it.
func (d *demo) forkBomb() error {
	from, err := d.size()
	if err != nil {
		return err
	}
	if _, err := d.inside(sh("f() { f | f & }; f")...); err != nil {
		return err
	}
	if err := d.wantRecord(record{Kind: "lifecycle", Verdict: "denied", Reason: "budget.processes"}, from); err != nil {
		return err
	}
	r, err := capture("/bin/true")
	if err != nil || r.code != 0 {
		return fmt.Errorf("the host can't start programs any more: %v", err)
	}
	d.say("the host starts a program in %v meanwhile", r.took.Round(time.Millisecond))
	if _, err := d.clawbox("agent", "status", agentName); err != nil {
		return err
	}
	r, err = d.quiet("agent", "stop", agentName, "--grace", "1s")
	if err != nil || r.code != 0 {
		return fmt.Errorf("agent stop: %v %s", err, r.out)
	}
	d.say("'clawbox agent stop' ended the bomb in %v", r.took.Round(time.Millisecond))
	_, err = d.clawbox("agent", "list")
	return err
}

// look shows what the sandbox sees.
func (d *demo) look() error {
	r, err := d.inside(sh(`echo "processes:"; for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done; echo "interfaces:"; cat /proc/net/dev | tail -n +3 | cut -d: -f1; echo "mounts:"; cut -d' ' -f1-3 /proc/self/mounts; grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status`)...)
	if err != nil {
		return err
	}
	d.show(r.out, 60)
	if strings.Contains(r.out, "clawbox serve") || strings.Contains(r.out, d.host) {
		return fmt.Errorf("the sandbox sees the host")
	}
	for _, want := range []string{`CapEff:\s+0000000000000000\n`, `CapBnd:\s+0000000000000000\n`, `NoNewPrivs:\s+1\n`, `Seccomp:\s+2\n`} {
		if !regexp.MustCompile(want).MatchString(r.out) {
			return fmt.Errorf("the sandbox's status has no line %s", want)
		}
	}
	return nil
}

// approve holds a connection to an unlisted host, answers it, and sees it
// work in the sandbox that runs.
func (d *demo) approve() (err error) {
	if d.vendor, err = openVendor(); err != nil {
		return fmt.Errorf("vendor: %w", err)
	}
	d.say("%s stands in another network namespace; a cable to it is all that leads out", vendorHost)
	before, err := d.quiet("agent", "status", agentName, "-o", "json")
	if err != nil {
		return err
	}
	from, err := d.size()
	if err != nil {
		return err
	}
	// The client waits in the background, as an agent would.
	_, err = d.inside(sh(`(` + strings.Join(quoted(node(`fetch("http://`+vendorHost+`/").then(async r=>console.log(r.status, await r.text()), e=>console.log("failed", e.cause?.code))`)), " ") + `) > /workspace/vendor.txt 2>&1 & exit 0`)...)
	if err != nil {
		return err
	}
	id, err := d.held()
	if err != nil {
		return err
	}
	if err := d.wantRecord(record{Kind: "connect", Verdict: "held", Host: vendorHost}, from); err != nil {
		return err
	}
	if _, err := d.clawbox("approve", id, "--session", "--operator", "demo"); err != nil {
		return err
	}
	if err := d.vendorAnswers(); err != nil {
		return err
	}
	for _, want := range []record{{Kind: "approval", Verdict: "allowed", Host: vendorHost}, {Kind: "connect", Verdict: "allowed", Host: vendorHost}} {
		if err := d.wantRecord(want, from); err != nil {
			return err
		}
	}
	return d.sameSandbox(before.out)
}

// quoted quotes each word for a shell.
func quoted(words []string) (out []string) {
	for _, w := range words {
		out = append(out, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return out
}

var heldID = regexp.MustCompile(`(?m)^(\S+)\s+` + agentName + `\s+` + regexp.QuoteMeta(vendorHost))

// held waits for the request and returns its id.
func (d *demo) held() (id string, err error) {
	err = d.until(20*time.Second, "the held request", func() (bool, error) {
		r, err := d.quiet("approve")
		if m := heldID.FindStringSubmatch(r.out); m != nil {
			id = m[1]
		}
		return id != "", err
	})
	if err != nil {
		return "", err
	}
	_, err = d.clawbox("approve")
	return id, err
}

func (d *demo) vendorAnswers() error {
	var out string
	err := d.until(20*time.Second, "the vendor's answer", func() (bool, error) {
		r, err := d.inside("/bin/cat", "/workspace/vendor.txt")
		out = r.out
		return strings.Contains(out, vendorText), err
	})
	d.say("the waiting client got: %s", strings.TrimSpace(out))
	return err
}

var pid = regexp.MustCompile(`"pid": (\d+)`)

// sameSandbox holds the sandbox to the one that ran before.
func (d *demo) sameSandbox(before string) error {
	now, err := d.quiet("agent", "status", agentName, "-o", "json")
	if err != nil {
		return err
	}
	if pid.FindString(before) == "" || pid.FindString(before) != pid.FindString(now.out) {
		return fmt.Errorf("the sandbox was restarted: %s → %s", pid.FindString(before), pid.FindString(now.out))
	}
	d.say("the same sandbox still runs (%s)", pid.FindString(now.out))
	return nil
}

// prove verifies the ledger, then a copy of it that was tampered with.
func (d *demo) prove() error {
	if _, err := d.clawbox("audit", "verify"); err != nil {
		return err
	}
	anchor := filepath.Join(d.dist, "anchor")
	r, err := d.quiet("audit", "anchor")
	if err != nil || r.code != 0 {
		return fmt.Errorf("anchor: %v %s", err, r.out)
	}
	if err := os.WriteFile(anchor, []byte(r.out), 0o644); err != nil {
		return err
	}
	if _, err := d.clawbox("audit", "verify", "--anchor", anchor); err != nil {
		return err
	}
	dir := filepath.Join(d.host, "tampered")
	if err := os.CopyFS(dir, os.DirFS(d.ledger())); err != nil {
		return err
	}
	d.say("a copy of the ledger in which somebody changed one byte:")
	if _, err := flip(filepath.Join(dir, "wal")); err != nil {
		return err
	}
	err = d.mustFail(3, "wal", d.bin, "--root", d.host, "audit", "verify", "--dir", dir)
	if err != nil {
		return err
	}
	d.say("what was refused to the agent since it began to attack:")
	_, err = d.clawbox("audit", "replay", "--agent", agentName, "--verdict", "denied", "--from", strconv.FormatInt(d.attacked, 10))
	return err
}
