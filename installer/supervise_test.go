package installer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/bundle/manifest"
	"golang.org/x/mod/sumdb/note"
)

// What systemd is asked, in order; a unit that used up its starts is forgiven.
func TestSystemd(t *testing.T) {
	var asked []string
	active := true
	s := Systemd{Ctl: func(_ context.Context, args ...string) error {
		asked = append(asked, args[0])
		if args[0] == "reset-failed" || args[0] == "is-active" && !active {
			return errors.New("exit status 3")
		}
		return nil
	}}
	if err := errors.Join(s.Start(t.Context()), s.Alive(t.Context()), s.Stop(t.Context())); err != nil || !s.Running(t.Context()) || !s.Stays() {
		t.Errorf("got %v", err)
	}
	if want := []string{"reset-failed", "start", "is-active", "stop", "is-active"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	active = false
	if err := s.Alive(t.Context()); err == nil || !strings.Contains(err.Error(), "journalctl") {
		t.Errorf("got %v", err)
	}
	if !ServiceOf(Answers{Start: "systemd"}).Stays() || ServiceOf(Answers{Start: "none"}).Stays() {
		t.Error("the service is not the one that the answers name")
	}
}

// A child that ends says so, with what it printed; one that runs is ended.
func TestForeground(t *testing.T) {
	root := fast(t)
	f := &Foreground{Layout: Layout{root}}
	for _, d := range []string{f.Layout.Install(), filepath.Dir(f.Layout.Command()), f.Layout.Run()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, f.Layout.Command(), "#!/bin/sh\necho told $1 $2 $3; [ -e "+root+"/stay ] && exec sleep 1000; exit 9\n")
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-f.ended
	if err := f.Alive(t.Context()); err == nil || !strings.Contains(err.Error(), "told serve --config "+f.Layout.Config()) || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("got %v", err)
	}
	write(t, filepath.Join(root, "stay"), "")
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := f.cmd.Process.Pid
	if err := errors.Join(f.Alive(t.Context()), f.Stop(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil && !dead(pid) {
		t.Error("the child lives on")
	}
	if f.Running(t.Context()) || f.Stop(t.Context()) != nil {
		t.Error("nothing runs, and it says otherwise")
	}
}

// With a root: the installed one stays until the release that brings the next
// one is committed, and is replaced with it.
func TestUpgradeMovesRoot(t *testing.T) {
	signer := func(name string) manifest.Signer {
		skey, _, err := note.GenerateKey(zeros{}, name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := manifest.ParseSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	key := signer("acme.example")
	role := manifest.Role{Keys: []string{key.Key()}, Threshold: 1}
	one := manifest.Root{Format: manifest.RootFormat, Name: "acme", Version: 1, Roles: manifest.RootRoles{Root: role, Release: role}}
	trust := func(r manifest.Root) manifest.Trust {
		msg, err := manifest.SignRoot(r, key)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := manifest.TrustRoot(msg)
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	two, err := one.Next()
	if err != nil {
		t.Fatal(err)
	}
	root := fast(t)
	m := release(1)
	m.trust = trust(one)
	if _, err := Run(t.Context(), planFor(t, root, m), m.env()); err != nil {
		t.Fatal(err)
	}
	version := func() int64 {
		tr, where, err := Trust(root, 0)
		if err != nil || where != (Layout{root}).Root() {
			t.Fatalf("trust from %s: %v", where, err)
		}
		r, _, _ := tr.Root()
		return r.Version
	}
	p := &played{root: root, stays: true}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context())
	next := release(2)
	next.trust = trust(two)
	_, err = upgrade(t.Context(), root, next, ChangeEnv{Service: p, Gates: []Gate{gate{"no", errors.New("no")}}, Deadline: time.Minute})
	var back *ReturnedError
	if !errors.As(err, &back) || version() != 1 {
		t.Errorf("a release that was taken back: root %d, %v", version(), err)
	}
	if _, err := upgrade(t.Context(), root, next, ChangeEnv{Service: p}); err != nil || version() != 2 {
		t.Errorf("root %d, %v", version(), err)
	}
	file := filepath.Join(t.TempDir(), "k")
	write(t, file, key.Key()+"\n")
	if _, err := AddKeys(root, file); err == nil || !strings.Contains(err.Error(), "next root") {
		t.Errorf("keys beside a root: %v", err)
	}
}

// zeros is no randomness: the key is the same in each run.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
