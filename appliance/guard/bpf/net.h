/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Programs at the top of the cgroup tree that see every socket made, every
 * connect and every datagram with an address. They run in the process that
 * calls; a result of 0 is EPERM for it. The scope is that of the process: the
 * one in which the socket was made is not asked, because a descriptor can be
 * passed on.
 */
#ifndef CLAWBOX_NET_H
#define CLAWBOX_NET_H

#include "scope.h"

enum { REFUSE = 0, GO_ON = 1 };

/* struct head.nr of a connection: what was asked for; the same in event.go */
enum { SOCKET = 1, CONNECTS_TO = 2, SENDS_TO = 3 };

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 20);
} connects SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 1 << 14);
	TYPE(key, struct peer);
	TYPE(value, __u8);
} peers SEC(".maps");

/* Who opened which connection. An agent can push out old ones, its own and
 * others', by opening as many anew as there is room for. */
struct {
	UINT(type, MAP_LRU_HASH);
	UINT(max_entries, 1 << 13);
	TYPE(key, struct ends);
	TYPE(value, struct caller);
} callers SEC(".maps");

/* The scope of the current task, by the same rule as scope_of_current: these
 * program types lack its helper on some kernels. */
inline_always struct scope *scope_at(__u64 *id, int *level)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct shared *all = ours();
	struct cgroup *cg = task->cgroups->dfl_cgrp;
	struct scope *s, *found = 0;
	__u64 k;

	if (!all || !all->watching)
		return 0;
	for (int i = 0; i < LEVELS && cg; i++) {
		k = cg->kn->id;
		s = bpf_map_lookup_elem(&scopes, &k);
		if (s)
			*id = k, *level = cg->level, found = s;
		cg = cg->self.parent->cgroup;
	}
	return found;
}

inline_always struct scope *scope_of_caller(__u64 *id)
{
	int level;

	return scope_at(id, &level);
}

/*
 * Whether a task lives in the cgroup id, at that level, or a little below; mine is
 * such a cgroup, the likely one. Who lives above that level does not, as whoever
 * started the sandbox mostly does. Read by a helper: it is dear for those few that
 * live elsewhere, and the verifier takes half a second longer over typed members in
 * two loops.
 */
inline_always int lives_in(struct task_struct *task, struct cgroup *mine, __u64 id, int level)
{
	struct cgroup *cg = task->cgroups->dfl_cgrp;
	int above;

	if (cg == mine)
		return 1;
	above = READ(cg, level) - level;
	for (int i = 0; i < 8 && i <= above; i++) {
		if (i == above)
			return READ(READ(cg, kn), id) == id;
		cg = READ(READ(cg, self.parent), cgroup);
	}
	return 0;
}

inline_always void v4(struct address *a, __u32 ip)
{
	__u32 *w = (void *)a;

	w[0] = w[1] = 0;
	w[2] = __builtin_bswap32(0xffff);
	w[3] = ip;
}

inline_always void v6(struct address *a, __u32 w0, __u32 w1, __u32 w2, __u32 w3)
{
	__u32 *w = (void *)a;

	w[0] = w0, w[1] = w1, w[2] = w2, w[3] = w3;
}

/* An IPv6 socket that talks IPv4 has addresses of this form. */
inline_always int mapped(struct address *a)
{
	__u32 *w = (void *)a;

	return !w[0] && !w[1] && w[2] == __builtin_bswap32(0xffff);
}

/*
 * Reports what a process wants of the network, refused or not, and tells what
 * to answer. The event is small enough for the stack: these programs can be
 * preempted, and memory of the CPU would be shared.
 */
inline_always int tell(struct scope *s, __u64 cgroup, struct head *h, int answer)
{
	__u64 list = list_of(s);

	if (answer == GO_ON && !(list & AUDIT_CONNECTS))
		return GO_ON;
	begin(h, cgroup, s);
	h->kind = CONNECT;
	h->ret = answer == GO_ON ? 0 : -EPERM;
	h->flags = answer == GO_ON ? 0 : DENIED;
	return emit(&connects, CONNECTS, s, h, sizeof(*h)) ? answer : REFUSE;
}

/* A socket that is neither TCP nor UDP would go past the programs below. */
SEC("cgroup/sock_create")
int on_socket(struct bpf_sock *sk)
{
	struct head h = {};
	struct scope *s;
	__u64 cgroup;

	if (sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP)
		return GO_ON;
	if (sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP)
		return GO_ON;
	s = scope_of_caller(&cgroup);
	if (!s || !(list_of(s) & (AUDIT_CONNECTS | LIMIT_UDP)))
		return GO_ON;
	h.nr = SOCKET;
	h.args[3] = sk->type;
	h.args[4] = sk->protocol;
	return tell(s, cgroup, &h, REFUSE);
}

/* The agent's own address, to which the routes of its namespace lead everything
 * that it sends from no address in particular: self in package egress. */
#define OWN_ADDRESS __builtin_bswap32(0xc6120001) /* 198.18.0.1 */

/*
 * Whether a socket is bound to an address that stands for somebody else. Where
 * every address is local an agent can bind any, and two of its sockets that meet
 * there (a simultaneous open, a socket that connects to itself) pass sk_lookup by,
 * which is asked only where no socket matches.
 */
inline_always int impostor(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 src = sk ? sk->src_ip4 : 0;

	return src && (src & __builtin_bswap32(0xff000000)) != __builtin_bswap32(0x7f000000) && src != OWN_ADDRESS;
}

inline_always int destination(struct bpf_sock_addr *ctx, struct address *to, __u16 nr)
{
	struct peer k = {};
	struct head h = {};
	struct scope *s;
	__u64 cgroup;
	int answer = GO_ON;

	s = scope_of_caller(&cgroup);
	if (!s)
		return GO_ON;
	k.list = list_of(s);
	k.to = *to;
	k.port = __builtin_bswap16(ctx->user_port);
	h.nr = nr;
	h.args[0] = ((__u64 *)to)[0];
	h.args[1] = ((__u64 *)to)[1];
	h.args[2] = k.port;
	h.args[3] = ctx->type;
	h.args[4] = ctx->protocol;
	if (k.list & LIMIT_UDP && ctx->type != SOCK_STREAM && !bpf_map_lookup_elem(&peers, &k))
		answer = REFUSE;
	if (k.list & LIMIT_UDP && ctx->type == SOCK_STREAM && impostor(ctx))
		answer = REFUSE;
	return tell(s, cgroup, &h, answer);
}

inline_always int destination4(struct bpf_sock_addr *ctx, __u16 nr)
{
	struct address to;

	v4(&to, ctx->user_ip4);
	return destination(ctx, &to, nr);
}

inline_always int destination6(struct bpf_sock_addr *ctx, __u16 nr)
{
	struct address to;

	v6(&to, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	return destination(ctx, &to, nr);
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *ctx) { return destination4(ctx, CONNECTS_TO); }

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *ctx) { return destination6(ctx, CONNECTS_TO); }

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *ctx) { return destination4(ctx, SENDS_TO); }

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *ctx) { return destination6(ctx, SENDS_TO); }

/* The program that a task runs; kernel threads have none. */
inline_always void read_exe(struct file_id *f, struct task_struct *task)
{
	struct inode *inode = task->mm->exe_file->f_inode;

	f->ino = inode->i_ino;
	f->dev = inode->i_sb->s_dev;
	f->pad = 0;
}

inline_always void read_caller(struct caller *c, __u64 scope, int level)
{
	struct task_struct *task = bpf_get_current_task_btf()->group_leader, *up;
	struct cgroup *mine = bpf_get_current_task_btf()->cgroups->dfl_cgrp;

	c->boot_ns = bpf_ktime_get_boot_ns();
	c->pid = task->tgid;
	c->uid = task->cred->uid.val;
	bpf_probe_read_kernel(c->comm, sizeof(c->comm), &task->comm);
	read_exe(&c->exe, task);
	up = task->real_parent;
	c->ppid = up->tgid;
	c->ups = 0;
	for (int i = 0; i < UPS; i++) {
		if (!up || !lives_in(up, mine, scope, level))
			break;
		read_exe(&c->up[i], up);
		c->ups = i + 1;
		up = up->real_parent->group_leader;
	}
}

/*
 * Called in the connecting process when its port is chosen and nothing is sent
 * yet: whoever accepts the connection later finds it here.
 */
SEC("sockops")
int on_tcp(struct bpf_sock_ops *ctx)
{
	struct caller c = {};
	struct ends k = {};
	int level = 0;

	if (ctx->op != SOCK_OPS_TCP_CONNECT || !scope_at(&k.cgroup, &level))
		return 0;
	if (ctx->family == AF_INET6)
		v6(&k.remote, ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]);
	if (ctx->family == AF_INET || mapped(&k.remote)) {
		v4(&k.remote, ctx->remote_ip4);
		v4(&k.local, ctx->local_ip4);
	} else {
		v6(&k.local, ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]);
	}
	k.local_port = ctx->local_port;
	k.remote_port = __builtin_bswap32(ctx->remote_port);
	read_caller(&c, k.cgroup, level);
	if (bpf_map_update_elem(&callers, &k, &c, 0))
		bpf_map_delete_elem(&callers, &k); /* unknown, and not whoever had these ends before */
	return 0;
}

#endif
