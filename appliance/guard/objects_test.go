package guard

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestLoops: the verifier of Linux 6.1 (check_cfg of kernel/bpf/verifier.c)
// takes a loop only where a jump closes it. Newer kernels, which this test may
// run on, do not mind.
func TestLoops(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"witness": loadWitness, "lsm": loadLsm, "modify": loadModify, "steer": loadSteer,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for prog, p := range spec.Programs {
			if at := fallsBack(edges(p.Instructions)); at >= 0 {
				t.Errorf("%s: instruction %d of %s falls back into a loop", name, at, prog)
			}
		}
	}
}

// edge leads to an instruction; false jump is the way on.
type edge struct {
	to   int
	jump bool
}

// edges are the ways from each instruction, in the kernel's order.
func edges(is asm.Instructions) [][]edge {
	at, labels, off := map[int]int{}, map[string]int{}, 0
	pos := make([]int, len(is))
	for i, in := range is {
		pos[i], at[off] = off, i
		labels[in.Symbol()] = i
		off += int(in.Width())
	}
	es := make([][]edge, len(is))
	for i, in := range is {
		op := in.OpCode.JumpOp()
		switch op {
		case asm.Exit:
		case asm.InvalidJumpOp, asm.Call:
			es[i] = []edge{{i + 1, false}}
		default:
			to, ok := labels[in.Reference()]
			if in.Reference() == "" || !ok {
				to = at[pos[i]+1+int(in.Offset)]
			}
			if op != asm.Ja {
				es[i] = append(es[i], edge{i + 1, true})
			}
			es[i] = append(es[i], edge{to, true})
		}
	}
	return es
}

// fallsBack walks depth first as the kernel does, and gives the instruction
// that leads on into one that is still being walked, or -1.
func fallsBack(es [][]edge) int {
	const walking, done = 1, 2
	state := make([]int, len(es))
	next := make([]int, len(es))
	state[0] = walking
	for stack := []int{0}; len(stack) > 0; {
		i := stack[len(stack)-1]
		if next[i] == len(es[i]) {
			state[i] = done
			stack = stack[:len(stack)-1]
			continue
		}
		e := es[i][next[i]]
		next[i]++
		switch {
		case state[e.to] == 0:
			state[e.to] = walking
			stack = append(stack, e.to)
		case state[e.to] == walking && !e.jump:
			return i
		}
	}
	return -1
}
