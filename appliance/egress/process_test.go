package egress

import (
	"fmt"
	"os"
	"testing"
)

// A hint stops looking where its bound is.
func TestOpensIsBounded(t *testing.T) {
	const n = 50
	dir := t.TempDir()
	for i := range n {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", i), fmt.Sprintf("%s/%d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	if ok, looks := opens(dir, "socket:[999]", 20); ok || looks != 20 {
		t.Errorf("got %v after %d looks, want none after 20", ok, looks)
	}
	if ok, looks := opens(dir, "socket:[7]", 1000); !ok || looks < 1 || looks > n {
		t.Errorf("got %v after %d looks", ok, looks)
	}
	if ok, looks := opens(dir+"/none", "x", 5); ok || looks != 0 {
		t.Errorf("got %v after %d looks in no directory", ok, looks)
	}
	if pid := holder(1, uint32(os.Getuid()), 1); pid != 0 {
		t.Errorf("got pid %d with no looks left", pid)
	}
}

// While one hint is looked for, another connection goes on without.
func TestHintDoesNotQueue(t *testing.T) {
	c := &conn{box: &box{}}
	c.box.hints.Lock()
	c.hint() // would deadlock
	if c.proc.PID != 0 {
		t.Error("a hint from nowhere")
	}
}
