package guard

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSelfTestFails: a guard that attaches to nothing must not pass.
func TestSelfTestFails(t *testing.T) {
	load(t) // skips where there is no BPF
	defer func(d time.Duration) { selfTestDeadline = d }(selfTestDeadline)
	selfTestDeadline = 300 * time.Millisecond
	for name, tt := range map[string]struct {
		harm func(g *Guard) error
		want string
	}{
		"nothing kills":       {func(g *Guard) error { return g.links[0].Close() }, "an unlisted program was not killed"},
		"execs are silent":    {func(g *Guard) error { return leave(g.queues[0]) }, "no event tells of the kill"},
		"refusals are silent": {func(g *Guard) error { return leave(g.queues[1]) }, "no event tells of the refused openat"},
		"opens are silent":    {func(g *Guard) error { return leave(g.queues[2]) }, "no event tells of the file that it opened"},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := open(Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if err := tt.harm(g); err != nil {
				t.Fatal(err)
			}
			if err := g.selfTest(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n := len(g.watches); n != 0 {
				t.Errorf("%d scopes left", n)
			}
		})
	}
}

// leave ends the reader of a ring.
func leave(q *queue) error {
	q.ended.Store(true)
	q.kick()
	for q.left() > 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * pause)
	return nil
}

// TestPlaces: the probe runs from memory and, where that is refused, from disk.
func TestPlaces(t *testing.T) {
	ready(t)
	cg := cgroup(t, "")
	for name, place := range map[string]func([]byte) (*os.File, error){"memory": placeMemory, "disk": placeDisk} {
		f, err := place(probe(missingName, unix.O_RDONLY))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer f.Close()
		if st, _, err := runIn(cg, f); err != nil || st.ExitStatus() != probeStatus {
			t.Errorf("%s: wait status %#x, %v", name, uint32(st), err)
		}
	}
}

// TestMounts reads mountinfo as proc(5) describes it.
func TestMounts(t *testing.T) {
	name := t.TempDir() + "/mountinfo"
	err := os.WriteFile(name, []byte(`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw
41 31 0:38 / /a\040b rw,relatime - cgroup2 cgroup2 rw
torn line
42 31 x:y / / rw - ext4 none rw
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	want := []mount{{"36", unix.Mkdev(98, 0), "/mnt1", "/mnt2", "ext3"}, {"41", unix.Mkdev(0, 38), "/", "/a b", "cgroup2"}}
	if got, err := mounts(name); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, d := range []uint64{0, unix.Mkdev(8, 1), unix.Mkdev(0, 70000), unix.Mkdev(4095, 1<<20-1)} {
		if got := userDev(kernelDev(d)); got != d {
			t.Errorf("device %#x comes back as %#x", d, got)
		}
	}
}
