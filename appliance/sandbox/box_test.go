package sandbox

import (
	"testing"
)

func TestHello(t *testing.T) {
	b := newBench(t)
	got, code, why := b.run(Spec{}, "list=/", "status=CapEff,NoNewPrivs,Seccomp,Uid", "pids", "links", "mounts", "fds", "exit=3")
	t.Log(got, code, why)
}
