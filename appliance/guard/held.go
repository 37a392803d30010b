package guard

import "sync"

// held keeps what enforces reachable: the kernel detaches a program when the
// garbage collector finalizes its link, and nobody would notice.
var held = struct {
	sync.Mutex
	m map[any]struct{}
}{m: map[any]struct{}{}}

func keep(v any) {
	held.Lock()
	defer held.Unlock()
	held.m[v] = struct{}{}
}

func drop(v any) {
	held.Lock()
	defer held.Unlock()
	delete(held.m, v)
}
