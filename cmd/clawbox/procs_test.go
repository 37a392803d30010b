package main

import (
	"runtime"
	"testing"
)

// TestManyProcs: few processors become more, many stay, and who sets GOMAXPROCS
// is obeyed.
func TestManyProcs(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, c := range []struct {
		env       string
		was, want int
	}{
		{"", 1, streamProcs},
		{"", streamProcs + 3, streamProcs + 3},
		{"2", 2, 2},
	} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.was)
		manyProcs()
		if got := runtime.GOMAXPROCS(0); got != c.want {
			t.Errorf("GOMAXPROCS=%q: got %d out of %d, want %d", c.env, got, c.was, c.want)
		}
	}
}
