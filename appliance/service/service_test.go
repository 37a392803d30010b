package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestServiceIsCaged(t *testing.T) {
	p := start(t, Spec{Role: "echo", Cage: cage(t, 64101)})
	if p.Proof.UID != 64101 || p.Proof.Landlock < 1 || len(p.Proof.Refused) < 10 {
		t.Errorf("proof is %+v", p.Proof)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	must(t, err)
	for _, want := range []string{"Uid:\t64101\t64101\t64101\t64101", "Groups:\t \n", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("status lacks %q:\n%s", want, b)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
	must(t, err)
	if n := bytes.Count(env, []byte{0}); n != 1 || !bytes.HasPrefix(env, []byte(cageEnv)) {
		t.Errorf("environment is %q, want the cage alone", env)
	}
	// Every thread, not only the first.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.PID))
	must(t, err)
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		must(t, err)
		if !bytes.Contains(b, []byte("Seccomp:\t2")) || !bytes.Contains(b, []byte("CapEff:\t0000000000000000")) {
			t.Errorf("thread %s is not confined", task)
		}
	}
}

func TestKeptCapabilities(t *testing.T) {
	c := cage(t, 64102)
	c.Keep, c.Calls, c.Late = []string{"bpf", "net_admin"}, []string{"bpf"}, true
	p := start(t, Spec{Role: "late", Cage: c})
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	must(t, err)
	want := fmt.Sprintf("%016x", uint64(1)<<unix.CAP_BPF|uint64(1)<<unix.CAP_NET_ADMIN)
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(string(b), set+":\t"+want) {
			t.Errorf("%s isn't %s:\n%s", set, want, b)
		}
	}
}

// TestPortsAreProved: a cage that names ports shows that others are closed.
func TestPortsAreProved(t *testing.T) {
	if abi, err := landlockABI(); err != nil || abi < 4 {
		t.Skipf("needs Landlock ABI 4 for TCP ports; got %d, %v", abi, err)
	}
	const proof = "connect to another TCP port: EACCES"
	c := cage(t, 64107)
	c.Calls = []string{"connect"}
	if p := start(t, Spec{Role: "echo", Cage: c}); slices.Contains(p.Proof.Refused, proof) {
		t.Errorf("proof of a cage without ports is %v", p.Proof.Refused)
	}
	c.Ports = []uint16{443}
	if p := start(t, Spec{Role: "echo", Cage: c}); !slices.Contains(p.Proof.Refused, proof) {
		t.Errorf("proof is %v", p.Proof.Refused)
	}
}

// TestCaptive: a service that was taken over gets nowhere, and each attempt
// fails with the error that its barrier gives.
func TestCaptive(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		must(t, os.Chmod(d, 0o755))
	}
	led, key, own := filepath.Join(dir, "ledger"), filepath.Join(dir, "key"), filepath.Join(dir, "own")
	must(t, os.Mkdir(led, 0o777))
	// Wide open on disk: what refuses is the cage, not the mode.
	for _, f := range []string{filepath.Join(led, "wal"), key, own} {
		must(t, os.WriteFile(f, []byte("x"), 0o666))
		must(t, os.Chmod(f, 0o666))
	}
	must(t, os.Chmod(led, 0o777))
	n := start(t, Spec{Role: "echo", Cage: cage(t, 64103)})
	c := cage(t, 64103) // the same user even: what refuses is the cage, not the user
	c.Read = []string{own}
	p := start(t, Spec{Role: "captive", Cage: c})
	var got map[string]int
	must(t, p.Conn.Call(short(t), "try", map[string]any{"Ledger": led, "Own": own, "Key": key, "Neighbour": n.PID}, &got))
	const eacces, eperm = int(unix.EACCES), int(unix.EPERM)
	for name, want := range map[string]int{
		"read the ledger": eacces, "write the ledger": eacces, "add to the ledger": eacces, "remove from the ledger": eperm,
		"read a key": eacces, "write what it may read": eacces, "make it writable": eperm,
		"read memory": eacces, "read memory by a call": eperm, "trace": eperm, "take a descriptor": eperm,
		"kill": eperm, "kill by thread": eperm, "execute": eperm, "fork": eperm, "unlimit": eperm, "unlimit from afar": eperm,
		"key ring": eperm, "io_uring": eperm, "another filter": eperm, "abstract socket": eperm, "netlink": eperm, "inet": eperm,
		"own": 0,
	} {
		if e, ok := got[name]; !ok || e != want {
			t.Errorf("%s: errno %d (%s), want %d (%s)", name, e, unix.ErrnoName(unix.Errno(e)), want, unix.ErrnoName(unix.Errno(want)))
		}
	}
	must(t, n.Conn.Call(short(t), "echo", 1, nil)) // the neighbour lives
}

func TestCalls(t *testing.T) {
	p := start(t, Spec{Role: "echo", Cage: cage(t, 64104), Handler: func(_ context.Context, r *Request) (any, error) {
		return r.Method + " of the supervisor", nil
	}})
	ctx := short(t)
	var s string
	if err := p.Conn.Call(ctx, "back", nil, &s); err != nil || s != "name of the supervisor" {
		t.Errorf("both ways: %q, %v", s, err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	f.WriteString("by descriptor")
	f.Seek(0, 0)
	if err := p.Conn.Call(ctx, "read", nil, &s, f); err != nil || s != "by descriptor" {
		t.Errorf("a descriptor: %q, %v", s, err)
	}
	var e *Error
	if err := p.Conn.Call(ctx, "refuse", nil, nil); !errors.As(err, &e) || e.Code != "no" || e.Text != "not 7" {
		t.Errorf("a refusal: %v", err)
	}
	if err := p.Conn.Call(ctx, "panic", nil, nil); err == nil || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("a panic: %v", err)
	}
	long := strings.Repeat("x", MaxBody-100)
	if err := p.Conn.Call(ctx, "echo", long, &s); err != nil || s != long {
		t.Errorf("8 MiB: %v", err)
	}
	if err := p.Conn.Call(ctx, "echo", long+long, &s); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("more than fits: %v", err)
	}
	must(t, p.Conn.Call(ctx, "echo", 1, nil))
}

func TestStartFails(t *testing.T) {
	good := cage(t, 64105)
	cases := map[string]struct {
		s    Spec
		want string
	}{
		"root":       {Spec{Role: "echo"}, "root is no cage"},
		"capability": {Spec{Role: "echo", Cage: Cage{UID: 1, GID: 1, Keep: []string{"sys_admin"}}}, "sys_admin"},
		"calls":      {Spec{Role: "echo", Cage: Cage{UID: 1, GID: 1, Calls: []string{"exec"}}}, "exec"},
		"no role":    {Spec{Role: "nobody", Cage: good}, "before it was ready"},
		"no path":    {Spec{Role: "echo", Cage: Cage{UID: 1, GID: 1, Read: []string{"/does/not/exist"}}}, "before it was ready"},
		"failing":    {Spec{Role: "failing", Cage: good}, "no such model"},
		"unsealed":   {Spec{Role: "unsealed", Cage: Cage{UID: 1, GID: 1, Late: true}}, "seal"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			c.s.Log = &log
			p, err := Start(short(t), c.s)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q; log: %s", err, c.want, log.String())
			}
			if err == nil {
				p.Kill()
			}
		})
	}
	if kids := children(t); len(kids) > 0 {
		t.Errorf("processes are left: %v", kids)
	}
}

// children lists this process's children.
func children(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			out = append(out, strings.Fields(string(b))...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestEnds: a service ends in order when asked, at once when killed, and when
// it loses the supervisor.
func TestEnds(t *testing.T) {
	p := start(t, Spec{Role: "echo", Cage: cage(t, 64106)})
	if err := p.End(short(t)); err != nil || p.err != nil {
		t.Errorf("ended by %v with %v", err, p.err)
	}
	p = start(t, Spec{Role: "echo", Cage: cage(t, 64106)})
	must(t, unix.Kill(p.PID, unix.SIGKILL))
	<-p.Done()
	if err := p.Conn.Call(short(t), "echo", 1, nil); !errors.Is(err, ErrGone) {
		t.Errorf("a call to a dead service: %v", err)
	}
	p = start(t, Spec{Role: "echo", Cage: cage(t, 64106)})
	p.Conn.Close()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Error("it outlives its supervisor's socket")
	}
}
