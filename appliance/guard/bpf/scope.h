/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Scopes (a cgroup of the v2 hierarchy and all below it), what may happen
 * there, and how an event gets out. All objects share these maps: the loader
 * makes them once and hands them to the others.
 */
#ifndef CLAWBOX_SCOPE_H
#define CLAWBOX_SCOPE_H

#include "kernel.h"

#define PATH_MAX 4096
#define NAME_MAX 256
#define TOLD_MAX 512	/* of a refused path, with its final zero; the same in event.go */
#define ADDR_MAX 128	/* sizeof(struct sockaddr_storage) */
#define LEVELS 32	/* of the cgroup tree; a scope must be above this depth */
#define NR_MAX 512	/* system call numbers known to the table */
#define SCOPES_MAX 1024
#define PREFIX_MAX 240	/* bytes of a readable folder; the same in list.go */
#define HOMES 64	/* cgroups whose scope a CPU remembers */
#define UPS 8		/* ancestors told of a caller */
#define INT_MAX 0x7fffffff
#define SIGKILL 9
#define SIGSYS 31
#define FULLS_MAX 16	/* events of full file systems per scope and 1.07 s */

enum { EPERM = 1, ENOENT = 2, ESRCH = 3, EACCES = 13, ENOSPC = 28, EROFS = 30, ECONNREFUSED = 111, EDQUOT = 122 };
enum { FMODE_PATH = 1 << 14 };
enum { AF_UNIX = 1, AF_INET = 2, AF_INET6 = 10 };
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2 };
enum { IPPROTO_TCP = 6, IPPROTO_UDP = 17 };

/* struct head.kind */
enum { EXEC = 1, REFUSED = 2, OPENED = 3, CONNECT = 4, TRAPPED = 5, FULL = 6 };

/* struct head.flags; the same bits in event.go */
enum { KILLED = 1, FOREIGN = 2, DENIED = 4 };

/* Lowest bits of struct slot.list; the same bits in list.go */
enum {
	AUDIT_MISSING = 1,
	NO_REFUSALS = 2,
	AUDIT_OPENS = 4,
	KILL = 8,		/* not EPERM alone */
	AUDIT_CONNECTS = 16,
	LIMIT_UDP = 32,
	KNOWS_READABLE = 64,
};

/* Rings, each with its accounts; the same order in ring.go */
enum { EXECS, REFUSALS, OPENS, CONNECTS, RINGS };

struct head {
	__u64 cgroup;
	__u64 boot_ns;
	__u64 ino;
	__u64 args[8];	/* six are used; eight so that an index can be masked */
	__u64 skipped;	/* of the same budget, not reported since its last event */
	__u32 dev;
	__u32 pid;
	__u32 ppid;
	__u32 uid;
	__s32 ret;
	__u32 mode;	/* file.f_mode of an opened file */
	__u16 nr;
	__u16 len[3];	/* of the strings in text, with their final zero */
	__u16 slot;
	__u8 kind;
	__u8 flags;
	char comm[16];
	char parent[16];
};

/* What goes over a ring: the head and the used part of text. */
struct event {
	struct head h;
	char text[2 * PATH_MAX];
};

/* How many events a scope may cause. All but window and count only grow. */
struct budget {
	__u64 window;	/* the second that count is about */
	__u64 count;
	__u64 skipped;	/* events left out */
	__u64 told;	/* of these, known from a later event */
};

/*
 * Misses (ENOENT) and writes to what is full are cheap to cause and mean little,
 * so they have budgets of their own: however many there are, they displace no
 * refusal.
 */
struct scope {
	struct budget refusals;
	struct budget misses;
	struct budget fulls;
	__u64 lost;		/* events that found no room in a ring */
	__u32 slot;
	__u32 pad;
};

/*
 * What the loader says about a scope, in memory that it shares with the
 * programs: list names the entries that hold now, so one store replaces a
 * whole policy at once.
 */
struct slot {
	__u64 list;		/* a number, and flags in its lowest bits */
	__u64 put[RINGS];	/* bytes that went into each ring: the programs count */
	__u64 pad[3];		/* the next is another CPU's to write: another cache line */
	__u64 got[RINGS];	/* bytes that came out of it: the loader counts */
	__u64 end[4];
};

/* An allowed executable; with ino 0 every file of the device is allowed. */
struct allowed {
	__u64 list;
	__u64 ino;
	__u32 dev;
	__u32 pad;
};

/* An address, IPv4 in its IPv6 form (::ffff:a.b.c.d). */
struct address {
	__u8 ip[16];
};

/* Where datagrams may go. */
struct peer {
	__u64 list;
	struct address to;
	__u16 port;
	__u16 pad[3];
};

/* A folder in which names may be looked for: text ends with a slash. */
struct prefix {
	__u32 bits;	/* of list and text that count */
	__u32 list[2];	/* in this order as in memory: no padding is possible here */
	char text[PREFIX_MAX];
};

/* Which arguments of a system call to read: index + 1, zero for none. */
struct shape {
	__u8 path[2];
	__u8 addr;	/* a socket address; its length is the next argument */
	__u8 flags;
	__u8 dir;	/* the directory that a relative path[0] is below */
	__u8 pad[3];
};

/* Names a scope for whoever takes over from a loader that died. */
struct label {
	char id[128];
	char dir[384];	/* of the cgroup; empty: not told */
};

/* One for all: limits that the loader sets, and counters. */
struct shared {
	__u32 watching;		/* number of scopes */
	__u32 auditing;		/* number of scopes that want opened files or connections */
	__u32 per_second;	/* refusals reported per scope and 1.07 s */
	__u32 misses_per_second; /* the same of misses */
	__u32 hooked;		/* opened files are reported by a hook */
	__u32 changes;		/* of the set of scopes, counted after each */
	__u64 share[RINGS];	/* bytes of each ring that one scope may fill */
	__u64 lost[RINGS];	/* events that found no room (or their cause was denied) */
};

struct file_id {
	__u64 ino;
	__u32 dev;
	__u32 pad;
};

/* Both ends of a TCP connection, as its client sees them. */
struct ends {
	__u64 cgroup;
	struct address local, remote;
	__u16 local_port, remote_port;
	__u32 pad;
};

struct caller {
	__u64 boot_ns;
	__u32 pid, ppid, uid;
	__u32 ups;		/* how many of up are known */
	struct file_id exe;
	struct file_id up[UPS];
	char comm[16];
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(map_flags, MAP_MMAPABLE);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct shared);
} common SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, SCOPES_MAX);
	TYPE(key, __u64);
	TYPE(value, struct scope);
} scopes SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(map_flags, MAP_MMAPABLE);
	UINT(max_entries, SCOPES_MAX);
	TYPE(key, __u32);
	TYPE(value, struct slot);
} slots SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 1 << 18);
	TYPE(key, struct allowed);
	TYPE(value, __u8);
} allow SEC(".maps");

/*
 * A ring each, so that a flood of refusals or opens can't push out an exec. The
 * sizes are set by the loader.
 */
struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 20);
} execs SEC(".maps");

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 23);
} opens SEC(".maps");

/* Reads a member of a structure of the kernel; zero where that fails. */
#define READ(p, member) ({ \
	typeof((p)->member) v = 0; \
	bpf_probe_read_kernel(&v, sizeof(v), &(p)->member); \
	v; })

/*
 * A structure of the kernel, read as a whole by one call of a helper instead of
 * one for each member: that is what a helper costs. AT says where a member is, in
 * the running kernel; the compiler leaves a number that the loader fills in, so a
 * member beyond what is read is known when the program is verified, not when it runs.
 */
#define AT(type, member) __builtin_preserve_field_info(((type *)0)->member, 0)
#define WITHIN(type, member, part) (AT(type, member) + sizeof(((type *)0)->member) <= sizeof(part))
#define FROM(part, type, member) \
	*(typeof(((type *)0)->member) *)((char *)(part) + AT(type, member))

inline_always struct shared *ours(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&common, &zero);
}

inline_always struct slot *slot_of(struct scope *s)
{
	return bpf_map_lookup_elem(&slots, &s->slot);
}

/* Flags and list of a scope: zero allows nothing. */
inline_always __u64 list_of(struct scope *s)
{
	struct slot *at = slot_of(s);

	return at ? *(volatile __u64 *)&at->list : 0;
}

/* The outermost scope that the current task lives in. */
inline_always struct scope *scope_of_current(__u64 *id)
{
	struct shared *all = ours();
	struct scope *s;

	if (!all || !all->watching)
		return 0;
	for (int i = 1; i < LEVELS; i++) {
		*id = bpf_get_current_ancestor_cgroup_id(i);
		if (!*id)
			return 0; /* the task lives above this level */
		s = bpf_map_lookup_elem(&scopes, id);
		if (s)
			return s;
	}
	return 0;
}

inline_always int may_exec(__u64 list, __u32 dev, __u64 ino)
{
	struct allowed k = { .list = list, .dev = dev, .ino = ino };

	if (ino && bpf_map_lookup_elem(&allow, &k))
		return 1;
	k.ino = 0;
	return bpf_map_lookup_elem(&allow, &k) != 0;
}

/* The sixteen bytes of a task's name. */
#define COPY_COMM(to, task) ({ \
	((__u64 *)(to))[0] = *(__u64 *)__builtin_preserve_access_index(&(task)->comm[0]); \
	((__u64 *)(to))[1] = *(__u64 *)__builtin_preserve_access_index(&(task)->comm[8]); })

/* Everything of a head that is so for every event of the current task. */
inline_always void begin(struct head *h, __u64 cgroup, struct scope *s)
{
	struct task_struct *task = bpf_get_current_task_btf(), *parent = task->real_parent;

	h->cgroup = cgroup;
	h->boot_ns = bpf_ktime_get_boot_ns();
	h->pid = task->tgid; /* read like memory: a helper takes ten times as long */
	h->uid = task->cred->uid.val;
	COPY_COMM(h->comm, task);
	h->ppid = parent->tgid;
	COPY_COMM(h->parent, parent);
	h->len[0] = h->len[1] = h->len[2] = 0;
	h->skipped = 0;
	h->flags = 0;
	h->slot = s->slot;
}

/* A failed read counts as an empty string. */
inline_always __u32 clamp(long n, __u32 max)
{
	return n < 0 ? 0 : n > max ? max : n;
}

/* Counts an event that found no room. */
inline_always void lose(struct scope *s, int ring)
{
	struct shared *all = ours();

	__sync_fetch_and_add(&s->lost, 1);
	if (all)
		__sync_fetch_and_add(&all->lost[ring], 1);
}

/*
 * Puts n bytes into a ring, of which a scope may fill its share and no more:
 * whoever floods it runs out of room alone. Tells whether it is in. The loader
 * may take an event before it is counted here: the difference can be negative.
 */
inline_always int emit(void *ring, int which, struct scope *s, void *data, __u64 n)
{
	struct shared *all = ours();
	struct slot *at = slot_of(s);
	__u64 cost = (n + 15) & ~7ull; /* with the ring's own header */

	if (all && at && (__s64)(at->put[which] - at->got[which] + cost) <= (__s64)all->share[which] &&
	    !bpf_ringbuf_output(ring, data, n, 0)) {
		__sync_fetch_and_add(&at->put[which], cost);
		return 1;
	}
	lose(s, which);
	return 0;
}

inline_always __u64 size_of(struct event *e)
{
	__u64 n = sizeof(e->h) + e->h.len[0] + e->h.len[1] + e->h.len[2];

	/* It is this sum that must be compared, and not what the compiler knows of its
	 * parts: the verifier of 6.1 learns from no other register. */
	asm volatile("" : "+r"(n));
	return n > sizeof(*e) ? sizeof(*e) : n;
}

#endif
