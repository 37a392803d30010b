/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * One listener answers every TCP connection of a network namespace, whatever
 * local address and port it was made to. The listener learns the original
 * destination from getsockname(2) on the accepted socket.
 *
 * But for loopback addresses at ports on which something inside the namespace
 * listens: an agent's own servers. sk_lookup can't ask the kernel for
 * listeners, so a tracepoint keeps a list of them.
 */
#include "kernel.h"

#define IPPROTO_TCP 6
#define AF_INET 2
#define NOEXIST 1 /* update_elem: only what is not there */
#define LISTENING 10 /* enum TCP_LISTEN, include/net/tcp_states.h */
#define MOST 512     /* sockets on the list of one namespace: others have room, too */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	__u32 inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__u16 skc_num;
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

#pragma clang attribute pop

struct port {
	__u32 space;
	__u32 number;
};

/*
 * How many sockets listen on each port of one namespace; at 0, which is nobody's
 * port, how many of its sockets are listed. They are added and taken away, never
 * made or removed: two sockets of one port that begin or end at once count right,
 * and no agent can take the room of another. Each namespace has its own.
 */
struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1 << 16);
	TYPE(key, __u32);
	TYPE(value, __s32);
} listening SEC(".maps");

/* The namespaces that are steered. The loader says what an inner map is like. */
struct {
	UINT(type, MAP_HASH_OF_MAPS);
	UINT(max_entries, 1 << 12);
	TYPE(key, __u32);
	TYPE(value, __u32);
} spaces SEC(".maps");

/* Which socket was listed with which port: the kernel takes the port from a
 * socket that it chose it for before it says that the socket is closed. */
struct {
	UINT(type, MAP_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 1 << 16);
	TYPE(key, __u64);
	TYPE(value, struct port);
} listed SEC(".maps");

struct {
	UINT(type, MAP_SOCKMAP);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} listener SEC(".maps");

inline_always void count(void *ports, __u32 at, __s32 by)
{
	__s32 *n = bpf_map_lookup_elem(ports, &at);

	if (n)
		__sync_fetch_and_add(n, by);
}

inline_always void add(__u64 id, struct sock *sk)
{
	struct port p = { sk->__sk_common.skc_net.net->ns.inum, sk->__sk_common.skc_num };
	void *ports = bpf_map_lookup_elem(&spaces, &p.space);
	__u32 all = 0;
	__s32 *n;

	if (!ports)
		return;
	n = bpf_map_lookup_elem(ports, &all);
	if (!n || *(volatile __s32 *)n >= MOST || bpf_map_update_elem(&listed, &id, &p, NOEXIST))
		return;
	count(ports, all, 1);
	count(ports, p.number, 1);
}

inline_always void forget(__u64 id)
{
	struct port *p = bpf_map_lookup_elem(&listed, &id), was;
	void *ports;

	if (!p)
		return;
	was = *p;
	if (bpf_map_delete_elem(&listed, &id))
		return;
	ports = bpf_map_lookup_elem(&spaces, &was.space);
	if (!ports)
		return; /* it is steered no more */
	count(ports, 0, -1);
	count(ports, was.number, -1);
}

SEC("tp_btf/inet_sock_set_state")
int on_state(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (ctx[1] == ctx[2])
		return 0;
	if ((int)ctx[2] == LISTENING)
		add((__u64)sk, sk);
	else if ((int)ctx[1] == LISTENING)
		forget((__u64)sk);
	return 0;
}

/* Whether a connection is the agent's to itself. */
inline_always int local(struct bpf_sk_lookup *ctx)
{
	__u32 port = ctx->local_port;
	__s32 *n;

	if (ctx->family == AF_INET) {
		if ((ctx->local_ip4 & __builtin_bswap32(0xff000000)) != __builtin_bswap32(0x7f000000))
			return 0;
	} else if (ctx->local_ip6[0] || ctx->local_ip6[1] || ctx->local_ip6[2] || ctx->local_ip6[3] != __builtin_bswap32(1)) {
		return 0;
	}
	n = bpf_map_lookup_elem(&listening, &port);
	return n && *(volatile __s32 *)n > 0;
}

SEC("sk_lookup/steer")
int steer(struct bpf_sk_lookup *ctx)
{
	__u32 zero = 0;
	void *sk;
	long err;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS; /* UDP: only ports that somebody bound answer */
	if (local(ctx))
		return SK_PASS; /* the kernel finds the listener, or refuses */
	sk = bpf_map_lookup_elem(&listener, &zero);
	if (!sk)
		return SK_DROP; /* the listener is gone: refuse, never fall through */
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

/* sk_lookup needs no GPL-only helper; one licence for all objects is simpler. */
char licence[] SEC("license") = "Dual MIT/GPL";
