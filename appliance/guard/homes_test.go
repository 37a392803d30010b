package guard

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// openOnDemand opens a file for each line that it reads.
func openOnDemand(name string) error {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fd, err := unix.Open(name, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		unix.Close(fd)
		fmt.Println("done")
	}
	return nil
}

// TestHomes: what the programs remember of a cgroup ends with each change of the
// scopes: of the same process, an open counts for the outermost scope that there
// is at that moment.
func TestHomes(t *testing.T) {
	g := ready(t)
	j := follow(g)
	outer := cgroup(t, "")
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Rmdir(inner) })
	audit(t, g, cgroup(t, "")) // so that the programs are at work all the time
	dir := openDir(t)
	c := helper(t, inner, "demand", dir+"/plain")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	want := map[string]int{}
	step := func(scope string) {
		t.Helper()
		for range 3 { // whichever CPU it runs on
			if _, err := io.WriteString(in, "\n"); err != nil || !lines.Scan() {
				t.Fatalf("the opener ended: %v", err)
			}
			want[scope]++
		}
	}
	step("")
	in1 := audit(t, g, inner)
	step("inner")
	out1 := audit(t, g, outer)
	step(filepath.Base(outer))
	if err := out1.Close(); err != nil {
		t.Fatal(err)
	}
	step("inner")
	if err := in1.Close(); err != nil {
		t.Fatal(err)
	}
	step("")
	out2 := audit(t, g, outer)
	step(filepath.Base(outer))
	in.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := out2.Close(); err != nil {
		t.Fatal(err)
	}
	delete(want, "")
	got := map[string]int{}
	for _, e := range j.all(func(e Event) bool {
		return e.Kind == Opened && e.File == "plain" && e.Inode == must(Lookup(os.Getpid(), dir+"/plain"))
	}) {
		got[e.Scope]++
	}
	if len(got) != 2 || got["inner"] != want["inner"] || got[filepath.Base(outer)] != want[filepath.Base(outer)] {
		t.Errorf("opens by scope: %v, want %v", got, want)
	}
}
