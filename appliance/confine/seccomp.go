package confine

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits
// wide; the filter looks at the low half only, which on little-endian machines
// comes first. That is right, not a shortcut: every argument in the tables is
// a 32-bit integer in the kernel, which ignores the upper half, so a filter
// that compared it could be fooled by setting it.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// What a filter answers.
var (
	retAllow  = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	retKill   = bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	retDenied = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	retAbsent = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
)

// test holds when the low half of argument arg, masked, is one of want.
type test struct {
	arg  int
	mask uint32
	want []uint32
}

// is tests for exact values of an argument.
func is(arg int, want ...uint32) test { return test{arg, ^uint32(0), want} }

// bits tests some bits of an argument.
func bits(arg int, mask uint32, want ...uint32) test { return test{arg, mask, want} }

// clause answers do when all its tests hold.
type clause struct {
	when []test
	do   bpf.RetConstant
}

// allowIf permits a call when all tests hold.
func allowIf(ts ...test) clause { return clause{ts, retAllow} }

// refuseIf denies a call when all tests hold.
func refuseIf(ts ...test) clause { return clause{ts, retDenied} }

// always ends a list of clauses whose default is to allow.
var always = clause{nil, retAllow}

// profile is a filter before compilation. A call that stands nowhere does not
// exist (ENOSYS), so that programs fall back as on an older kernel.
type profile struct {
	allow  []uint32
	some   map[uint32][]clause // first clause that holds answers; none: EPERM
	denied []uint32            // EPERM
}

// compiled holds what Profile has compiled, by name. It stays empty in a
// launcher, which gets its filters ready-made.
var compiled sync.Map

// Profile compiles the system call profile called name for this architecture.
// All callers share one Filter and must leave it as it is.
func Profile(name string) (Filter, error) {
	if f, ok := compiled.Load(name); ok {
		return f.(Filter), nil
	}
	f, err := compileProfile(name)
	if err == nil {
		compiled.Store(name, f)
	}
	return f, err
}

func compileProfile(name string) (Filter, error) {
	p, ok := profiles()[name]
	if !ok {
		return nil, fmt.Errorf("no system call profile %q; want \"default\" or \"strict\"", name)
	}
	ins, err := bpf.Assemble(p.compile())
	f := make(Filter, len(ins))
	for i, in := range ins {
		f[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return f, err
}

// compile lays the program out as: architecture, conditional calls, then
// ranges of numbers that share an answer. The kernel remembers which calls
// are allowed whatever their arguments (since 5.11), so the ranges' linear
// search costs nothing in practice.
func (p profile) compile() []bpf.Instruction {
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		retKill,
		bpf.LoadAbsolute{Off: offNr, Size: 4},
	}
	if foreignBit != 0 {
		// x32 numbers reach the same calls by another name.
		out = append(out, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: foreignBit, SkipFalse: 1}, retKill)
	}
	for _, nr := range sortedKeys(p.some) {
		b := compileClauses(p.some[nr])
		out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: uint8(len(b))})
		out = append(out, b...)
	}
	out = append(out, compileRanges(p.allow, retAllow)...)
	out = append(out, compileRanges(p.denied, retDenied)...)
	return append(out, retAbsent)
}

// compileClauses always ends in an answer, so the accumulator need not be
// restored. Blocks stay far below the 255 instructions that a jump can skip.
func compileClauses(cs []clause) []bpf.Instruction {
	var out []bpf.Instruction
	for _, c := range cs {
		var b []bpf.Instruction
		// Built from the end, so that each test knows how far the next clause is.
		b = append(b, c.do)
		for _, t := range slices.Backward(c.when) {
			b = append(compileTest(t, len(b)), b...)
		}
		out = append(out, b...)
	}
	return append(out, retDenied)
}

// compileTest falls through when t holds and else skips rest instructions.
func compileTest(t test, rest int) []bpf.Instruction {
	out := []bpf.Instruction{bpf.LoadAbsolute{Off: offArgs + 8*uint32(t.arg), Size: 4}}
	if t.mask != ^uint32(0) {
		out = append(out, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask})
	}
	for i, v := range t.want {
		left := len(t.want) - 1 - i
		j := bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(left)}
		if left == 0 {
			j.SkipFalse = uint8(rest)
		}
		out = append(out, j)
	}
	return out
}

// compileRanges answers do for each of nrs, two comparisons per run of
// consecutive numbers.
func compileRanges(nrs []uint32, do bpf.RetConstant) []bpf.Instruction {
	nrs = slices.Compact(slices.Sorted(slices.Values(nrs)))
	var out []bpf.Instruction
	for i := 0; i < len(nrs); {
		j := i
		for j+1 < len(nrs) && nrs[j+1] == nrs[j]+1 {
			j++
		}
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: nrs[i], SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: nrs[j], SkipTrue: 1},
			do)
		i = j + 1
	}
	return out
}

func sortedKeys(m map[uint32][]clause) []uint32 {
	ks := make([]uint32, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
