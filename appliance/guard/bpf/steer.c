/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * One listener answers every TCP connection of a network namespace, whatever
 * local address and port it was made to. The listener learns the original
 * destination from getsockname(2) on the accepted socket.
 */
#include "kernel.h"

#define IPPROTO_TCP 6

struct {
	UINT(type, MAP_SOCKMAP);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} listener SEC(".maps");

SEC("sk_lookup/steer")
int steer(struct bpf_sk_lookup *ctx)
{
	__u32 zero = 0;
	void *sk;
	long err;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS; /* UDP: only ports that somebody bound answer */
	sk = bpf_map_lookup_elem(&listener, &zero);
	if (!sk)
		return SK_DROP; /* the listener is gone: refuse, never fall through */
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

/* sk_lookup needs no GPL-only helper; one licence for all objects is simpler. */
char licence[] SEC("license") = "Dual MIT/GPL";
