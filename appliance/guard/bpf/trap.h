/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Death by seccomp: a part of witness.c, with its budgets and its ring.
 */
#ifndef CLAWBOX_TRAP_H
#define CLAWBOX_TRAP_H

/* siginfo of a signal that seccomp sent: kernel ABI on 64 bits, siginfo.h. */
struct trap {
	__s32 signo, error, code, pad;
	__u64 addr;
	__s32 nr;
	__u32 arch;
};

enum { SYS_SECCOMP = 1 };

/*
 * Every signal of the host comes by here. One of seccomp's is sent to the caller
 * by itself, and ends it unless the filter asked for less.
 */
SEC("tp_btf/signal_generate")
int on_signal(__u64 *ctx)
{
	struct trap t = {};
	struct shared *all;
	struct scope *s;
	struct event *e;
	__u32 one = 1;
	__u64 cgroup;

	if ((int)ctx[0] != SIGSYS || bpf_probe_read_kernel(&t, sizeof(t), (void *)ctx[1]) || t.code != SYS_SECCOMP)
		return 0;
	s = scope_of_current(&cgroup);
	all = ours();
	e = bpf_map_lookup_elem(&scratch, &one);
	if (!s || !all || !e || list_of(s) & NO_REFUSALS || over(&s->refusals, all->per_second))
		return 0;
	begin(&e->h, cgroup, s);
	e->h.nr = t.nr;
	e->h.ret = 0;
	e->h.args[0] = (__u32)t.nr;
	e->h.args[1] = t.arch;
	e->h.args[2] = t.addr;
	e->h.args[3] = e->h.args[4] = e->h.args[5] = 0;
	refused(e, s, &s->refusals, TRAPPED);
	return 0;
}

#endif
