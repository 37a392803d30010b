/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Whether a name that does not exist is news: not below the folders in which the
 * scope may look.
 */
#ifndef CLAWBOX_LOOK_H
#define CLAWBOX_LOOK_H

#include "scope.h"

struct {
	UINT(type, MAP_LPM_TRIE);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 1 << 16);
	TYPE(key, struct prefix);
	TYPE(value, __u8);
} readable SEC(".maps");

/* 1 where two numbers below 2^31 are equal, without a branch. */
#define SAME(a, b) (((__u32)((a) ^ (b)) - 1) >> 31)

/*
 * Whether a name has a part that is empty or begins with "..", or is ".": it may
 * lead elsewhere than it begins, or past a longer entry of the folders. The only
 * branch is the one back: the verifier of Linux 6.1 takes no loop that the
 * compiler enters in its middle, and with more branches it makes one.
 */
inline_always int climbs(const char *name, __u32 len)
{
	__u32 last = 0, bad = 0;
	__u64 i = 0, end = len;

	asm volatile("" : "+r"(end)); /* compare this one, see size_of */
	if (end > TOLD_MAX)
		end = TOLD_MAX;
	do {
		last = (last << 8 | (__u8)name[i]) & 0xffffff;
		bad |= SAME(last & 0xffff, '/' << 8 | '/');
		bad |= SAME(last, '/' << 16 | '.' << 8) | SAME(last, '/' << 16 | '.' << 8 | '.') |
		       SAME(last, '/' << 16 | '.' << 8 | '/');
	} while (++i < end);
	return bad;
}

/*
 * Whether the agent may look for the name in e. The key is built behind it, in
 * the part of text that a refusal does not use. A name that was cut, climbs or is
 * relative to who knows what is none to judge by.
 */
inline_always int may_look(struct event *e, __u64 list)
{
	struct prefix *k = (void *)(e->text + PATH_MAX);
	__u32 len = e->h.len[0], dir = 0;
	__u8 *v;

	if (len < 2 || len >= TOLD_MAX || climbs(e->text, len))
		return 0;
	if (e->text[0] != '/') {
		dir = e->h.len[2];
		if (dir < 3 || dir > PREFIX_MAX || len + e->h.len[1] > 2 * TOLD_MAX ||
		    (e->text[0] == '.' && (e->text[1] == '.' || e->text[1] == '/' || !e->text[1])))
			return 0;
		if (bpf_probe_read_kernel(k->text, PREFIX_MAX, e->text + len + e->h.len[1]))
			return 0;
		k->text[(dir - 1) & 0xff] = '/';
	}
	k->bits = 8 * (sizeof(k->list) + PREFIX_MAX);
	k->list[0] = list;
	k->list[1] = list >> 32;
	if (bpf_probe_read_kernel(e->text + PATH_MAX + __builtin_offsetof(struct prefix, text) + (dir & 0xff),
				  PREFIX_MAX, e->text))
		return 0;
	len += dir;
	if (len <= PREFIX_MAX)
		k->text[(len - 1) & 0xff] = '/'; /* a folder's own name is below it */
	v = bpf_map_lookup_elem(&readable, k);
	return v && *v;
}

#endif
