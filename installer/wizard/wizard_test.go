package wizard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestMain lets a person (or tmux) look at the forms:
//
//	go test -c ./installer/wizard && CLAWBOX_TEST_WIZARD=1 ./wizard.test
func TestMain(m *testing.M) {
	if os.Getenv("CLAWBOX_TEST_WIZARD") == "" {
		os.Exit(m.Run())
	}
	f := machine()
	if os.Getenv("CLAWBOX_TEST_WIZARD") == "weak" {
		f.BPF = host.BPF{}
		f.Listening = []string{"127.0.0.1:5000"}
	}
	r := release()
	if os.Getenv("CLAWBOX_TEST_WIZARD") == "cluster" {
		f, r = node(), clusterRelease()
	}
	a, err := Ask(context.Background(), f, r, os.Stdin, os.Stdout)
	b, _ := a.Encode()
	fmt.Printf("\nerror: %v\n%s", err, b)
	os.Exit(0)
}

func release() installer.Release {
	h := func(c string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(c, 64)} }
	return installer.Release{
		Name: "demo", Version: "0.1.0", Sequence: 1, Digest: h("a").String(), Signers: []string{"acme.example"}, Bytes: 800 << 20,
		Created: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Items: []installer.Item{
			{Name: "clawbox", Kind: "file", Path: "bin/clawbox", Mode: 0o755, Size: 40 << 20, Digest: h("1"), Redistributable: true},
			{Name: "launch", Kind: "file", Path: "bin/clawbox-launch", Mode: 0o755, Size: 2 << 20, Digest: h("2"), Redistributable: true},
			{Name: "ollama", Kind: "file", Path: "bin/ollama", Mode: 0o755, Size: 35 << 20, Digest: h("3"), Redistributable: true},
			{Name: "openclaw", Kind: "image", Ref: "openclaw:0.1.0", Size: 300 << 20, Digest: h("4"), Redistributable: true},
			{Name: "openclaw-policy", Kind: "policy", Path: "policies/openclaw.yaml", Digest: h("5"), Redistributable: true},
			{Name: "tiny", Kind: "model", Ref: "tiny:0.1.0", Size: 2 << 20, Digest: h("6"), Redistributable: true},
		},
	}
}

func machine() host.Facts {
	return host.Facts{
		Time: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), Hostname: "edge-7", Root: "/", Systemd: true, ClockSync: true,
		OS: host.OS{ID: "debian", Version: "12", Pretty: "Debian GNU/Linux 12"}, Arch: "amd64", CPUs: 4,
		Memory: host.Memory{Total: 16 << 30, Available: 8 << 30}, Kernel: host.Kernel{Release: "6.12.1", Major: 6, Minor: 12},
		Landlock: 6, Seccomp: true, UserNS: 1000, Overlay: true, Namespaces: []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"},
		Cgroup:    host.Cgroup{Version: "v2", Controllers: []string{"cpu", "memory", "pids"}, Unified: "/sys/fs/cgroup"},
		BPF:       host.BPF{Tracepoint: true, CgroupSock: true, SkLookup: true, BTF: true},
		Disk:      host.Disk{Path: "/var/lib", FSType: "ext4", Options: []string{"rw"}, Free: 100 << 30, Inodes: 1 << 20, Write: 500 << 20, Fsync: time.Millisecond},
		MediaRead: 100 << 20, Failed: map[string]string{},
	}
}

// talk runs the plain wizard with these lines as input, through a pipe.
func talk(t *testing.T, f host.Facts, input string) (installer.Answers, string, error) {
	t.Helper()
	return talkOf(t, f, release(), input)
}

func talkOf(t *testing.T, f host.Facts, rel installer.Release, input string) (installer.Answers, string, error) {
	t.Helper()
	r, w := io.Pipe()
	go func() { io.WriteString(w, input); w.Close() }()
	var out strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a, err := Ask(ctx, f, rel, r, &out)
	r.Close()
	if t.Failed() || testing.Verbose() {
		t.Log(out.String())
	}
	return a, out.String(), err
}

func lines(s ...string) string { return strings.Join(s, "\n") + "\n" }

func TestDefaults(t *testing.T) {
	a, out, err := talk(t, machine(), lines("", "", "Ann", "", "0", "", "", "y"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Validate(); err != nil || a.Operator != "Ann" || a.Root != "/" || a.Start != "systemd" || a.Profile != "solo" || len(a.Agents) != 1 || a.Agents[0].Policy != "openclaw.yaml" || len(a.Accept) != 0 {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, want := range []string{"signed by acme.example", "Activate the release", "takes about", "Install this?"} {
		if !strings.Contains(out, want) {
			t.Errorf("the conversation lacks %q", want)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("plain output has escape sequences: %q", out)
	}
	if strings.Contains(out, "A weakening") {
		t.Error("a good machine was asked about weakenings")
	}
}

func TestEveryAnswer(t *testing.T) {
	f := machine()
	f.BPF = host.BPF{}
	f.Listening = []string{"127.0.0.1:5000"}
	a, out, err := talk(t, f, lines(
		"2", "1", // cluster is refused, then solo
		"relative", "", // a bad root, then the default
		"Ann Operator", "2",
		"0", "3", // agents as they are; the third policy
		"api.example.com=10.0.0.7, b.example=10.0.0.8",
		"0.0.0.0:5001", "127.0.0.1:5001", "", // a bad address, a good one; the engine's default
		"y", "y"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Start != "none" || a.Registry != "127.0.0.1:5001" || !slices.Equal(a.Accept, []string{"tier-T4"}) || len(a.Hosts) != 2 || a.Agents[0].Policy == "openclaw.yaml" {
		t.Errorf("got %+v", a)
	}
	for _, want := range []string{"no K3s", "clean absolute path", "loopback", "run without BPF"} {
		if !strings.Contains(out, want) {
			t.Errorf("the conversation lacks %q", want)
		}
	}
}

func TestAgentsCanBeLeftOut(t *testing.T) {
	a, _, err := talk(t, machine(), lines("", "", "Ann", "", "1", "0", "", "y"))
	if err != nil || len(a.Agents) != 0 {
		t.Errorf("got %+v, %v", a.Agents, err)
	}
}

func TestNo(t *testing.T) {
	if _, _, err := talk(t, machine(), lines("", "", "Ann", "", "0", "", "", "")); !errors.Is(err, ErrDeclined) {
		t.Errorf("an empty answer to the last question: got %v; want ErrDeclined", err)
	}
	f := machine()
	f.BPF = host.BPF{}
	var pre *installer.ErrPreflight
	if _, _, err := talk(t, f, lines("", "", "Ann", "", "0", "", "", "n")); !errors.As(err, &pre) {
		t.Errorf("a refused weakening: got %v; want the preflight's refusal", err)
	}
}

// Whatever the input stops at: never an answer, never a hang.
func TestInputEnds(t *testing.T) {
	whole := lines("", "", "Ann", "", "0", "", "", "y")
	for n := range len(whole) {
		if a, _, err := talk(t, machine(), whole[:n]); !errors.Is(err, ErrNoInput) {
			t.Errorf("cut after %q: got %+v, %v; want ErrNoInput", whole[:n], a, err)
		}
	}
}

func TestHopeless(t *testing.T) {
	f := machine()
	f.Landlock = 0
	var pre *installer.ErrPreflight
	if _, out, err := talk(t, f, ""); !errors.As(err, &pre) || strings.Contains(out, "Profile") {
		t.Errorf("got %v after %q; want a refusal before the first question", err, out)
	}
}

func TestParseHosts(t *testing.T) {
	for in, ok := range map[string]bool{
		"": true, " , ": true, "a.example=10.0.0.1": true, "a.example = ::1 ,": true,
		"a.example": false, "a.example=x": false, "A=10.0.0.1": false, "a=1.1.1.1,a=2.2.2.2": false,
	} {
		if _, err := parseHosts(in); (err == nil) != ok {
			t.Errorf("%q: got %v", in, err)
		}
	}
}
