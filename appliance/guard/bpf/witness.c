/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Two programs watch scopes (a cgroup of the v2 hierarchy and all below it):
 * on_exec kills what is not listed, on_exit reports refused system calls and,
 * where a scope asks for it, opened files.
 * Everything outside a scope leaves both as early as possible.
 */
#include "kernel.h"

#define PATH_MAX 4096
#define NAME_MAX 256
#define TOLD_MAX 512	/* of a refused path, with its final zero; the same in event.go */
#define ADDR_MAX 128	/* sizeof(struct sockaddr_storage) */
#define LEVELS 32	/* of the cgroup tree; a scope must be above this depth */
#define NR_MAX 512	/* system call numbers known to the table */
#define INT_MAX 0x7fffffff
#define SIGKILL 9

enum { EPERM = 1, ENOENT = 2, ESRCH = 3, EACCES = 13, EROFS = 30 };

/* struct head.kind */
enum { EXEC = 1, REFUSED = 2, OPENED = 3 };

/* struct head.flags; the same bits in event.go */
enum { KILLED = 1, FOREIGN = 2 };

/* struct scope.flags; the same bits in watch.go */
enum { AUDIT_MISSING = 1, NO_REFUSALS = 2, AUDIT_OPENS = 4 };

/* struct shape.flags; the same bits in syscalls.go */
enum {
	KNOWN = 1,		/* tell of refusals */
	MISSING = 2,		/* also of ENOENT, where the scope asks */
	UNSEEN = 4,		/* also of ESRCH */
	OPENS = 8,		/* returns the descriptor of a file */
	FOREIGN_OPENS = 16,	/* so does the 32-bit call of this number */
};

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
	__u16 len[2];	/* of the two strings in text, with their final zero */
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
 * Misses (ENOENT) are cheap to cause and mean little, so they have a budget of
 * their own: however many there are, they displace no refusal.
 */
struct scope {
	struct budget refusals;
	struct budget misses;
	__u64 lost;	/* events that found no room in a ring */
	__u32 flags;
	__u32 pad;
};

/* An allowed executable; with ino 0 every file of the device is allowed. */
struct allowed {
	__u64 cgroup;
	__u64 ino;
	__u32 dev;
	__u32 pad;
};

/* Which arguments of a system call to read: index + 1, zero for none. */
struct shape {
	__u8 path[2];
	__u8 addr;	/* a socket address; its length is the next argument */
	__u8 flags;
};

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 1024);
	TYPE(key, __u64);
	TYPE(value, struct scope);
} scopes SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 1 << 18);
	TYPE(key, struct allowed);
	TYPE(value, __u8);
} allow SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, NR_MAX);
	TYPE(key, __u32);
	TYPE(value, struct shape);
} shapes SEC(".maps");

/* Events are too big for the stack: [0] for on_exec, [1] for on_exit. */
struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 2);
	TYPE(key, __u32);
	TYPE(value, struct event);
} scratch SEC(".maps");

/*
 * A ring each, so that a flood of refusals or opens can't push out an exec. The
 * sizes are set by guard.go.
 */
struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 20);
} execs SEC(".maps");

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 20);
} refusals SEC(".maps");

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 23);
} opens SEC(".maps");

volatile __u32 watching;	/* number of scopes */
volatile __u32 auditing;	/* number of scopes that want opened files */
volatile __u32 per_second;	/* refusals reported per scope and 1.07 s */
volatile __u32 misses_per_second; /* the same of misses */
volatile __u64 lost_execs;	/* events that found no room (their exec was killed) */
volatile __u64 lost_refusals;	/* events that found no room */
volatile __u64 lost_opens;	/* events that found no room (their process was killed) */

/* The outermost scope that the current task lives in. */
inline_always struct scope *scope_of_current(__u64 *id)
{
	struct scope *s;

	if (!watching)
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

inline_always int may_exec(__u64 cgroup, __u32 dev, __u64 ino)
{
	struct allowed k = { .cgroup = cgroup, .dev = dev, .ino = ino };

	if (ino && bpf_map_lookup_elem(&allow, &k))
		return 1;
	k.ino = 0;
	return bpf_map_lookup_elem(&allow, &k) != 0;
}

inline_always struct event *new_event(__u32 slot, __u64 cgroup)
{
	struct event *e = bpf_map_lookup_elem(&scratch, &slot);
	struct task_struct *task = bpf_get_current_task(), *parent = 0;
	struct head *h;

	if (!e)
		return 0;
	h = &e->h;
	h->cgroup = cgroup;
	h->boot_ns = bpf_ktime_get_boot_ns();
	h->pid = bpf_get_current_pid_tgid() >> 32;
	h->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(h->comm, sizeof(h->comm));
	bpf_probe_read_kernel(&parent, sizeof(parent), &task->real_parent);
	bpf_probe_read_kernel(&h->ppid, sizeof(h->ppid), &parent->tgid);
	bpf_probe_read_kernel(h->parent, sizeof(h->parent), &parent->comm);
	h->len[0] = h->len[1] = 0;
	h->skipped = 0;
	h->flags = 0;
	return e;
}

/* A failed read counts as an empty string. */
inline_always __u32 clamp(long n, __u32 max)
{
	return n < 0 ? 0 : n > max ? max : n;
}

inline_always long emit(void *ring, struct event *e)
{
	__u32 n = sizeof(e->h) + e->h.len[0] + e->h.len[1];

	if (n > sizeof(*e))
		n = sizeof(*e);
	return bpf_ringbuf_output(ring, e, n, 0);
}

/* Counts an event that found no room. */
inline_always void lose(struct scope *s, volatile __u64 *total)
{
	__sync_fetch_and_add(&s->lost, 1);
	__sync_fetch_and_add(total, 1);
}

/*
 * Runs after the kernel has committed to the new image and before its first
 * instruction. bprm->file is what was really loaded: for a script its
 * interpreter, for "ld.so PROGRAM" the dynamic linker.
 */
SEC("tp_btf/sched_process_exec")
int on_exec(__u64 *ctx)
{
	struct linux_binprm *bprm = (void *)ctx[2];
	struct file *file = bprm->file;
	struct scope *s;
	struct event *e;
	__u64 cgroup;
	__u32 n;

	s = scope_of_current(&cgroup);
	if (!s)
		return 0;
	e = new_event(0, cgroup);
	if (!e) { /* can't happen; but no event, no exec */
		bpf_send_signal(SIGKILL);
		return 0;
	}
	e->h.kind = EXEC;
	e->h.ret = 0;
	e->h.ino = file->f_inode->i_ino;
	e->h.dev = file->f_inode->i_sb->s_dev;
	if (!may_exec(cgroup, e->h.dev, e->h.ino)) {
		e->h.ret = bpf_send_signal(SIGKILL);
		e->h.flags = KILLED;
	}
	n = clamp(bpf_probe_read_kernel_str(e->text, PATH_MAX, bprm->filename), PATH_MAX);
	e->h.len[0] = n;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				file->f_path.dentry->d_name.name), NAME_MAX);
	if (emit(&execs, e)) {
		lose(s, &lost_execs);
		bpf_send_signal(SIGKILL); /* what can't be recorded may not run */
	}
	return 0;
}

/* True when this second's budget is spent. Races cost accuracy only. */
inline_always int over(struct budget *b, __u32 limit)
{
	__u64 now = bpf_ktime_get_ns() >> 30; /* 1.07 s */

	if (b->window != now) {
		b->window = now;
		b->count = 0;
	}
	__sync_fetch_and_add(&b->count, 1);
	if (b->count <= limit)
		return 0;
	__sync_fetch_and_add(&b->skipped, 1);
	return 1;
}

#if defined(__TARGET_ARCH_x86)
inline_always int syscall_nr(struct pt_regs *r) { return r->orig_ax; }
inline_always void syscall_args(struct pt_regs *r, __u64 *a)
{
	a[0] = r->di, a[1] = r->si, a[2] = r->dx;
	a[3] = r->r10, a[4] = r->r8, a[5] = r->r9;
}
/* A 32-bit call: other numbers, other registers. */
inline_always int foreign(struct task_struct *t)
{
	__u32 status = 0;

	bpf_probe_read_kernel(&status, sizeof(status), &t->thread_info.status);
	return status & 2; /* TS_COMPAT */
}
#else
inline_always int syscall_nr(struct pt_regs *r) { return r->syscallno; }
inline_always void syscall_args(struct pt_regs *r, __u64 *a)
{
	a[0] = r->orig_x0, a[1] = r->regs[1], a[2] = r->regs[2];
	a[3] = r->regs[3], a[4] = r->regs[4], a[5] = r->regs[5];
}
inline_always int foreign(struct task_struct *t)
{
	unsigned long flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), &t->thread_info.flags);
	return flags >> 22 & 1; /* TIF_32BIT */
}
#endif

/*
 * Reads up to two strings of the caller's memory, where it may have changed since.
 * Of each at most max bytes, a constant.
 */
inline_always void read_paths(struct event *e, struct shape *sh, __u32 max)
{
	__u32 n = 0;

	if (sh->path[0])
		n = clamp(bpf_probe_read_user_str(e->text, max,
				(void *)e->h.args[(sh->path[0] - 1) & 7]), max);
	e->h.len[0] = n;
	if (sh->path[1])
		e->h.len[1] = clamp(bpf_probe_read_user_str(e->text + n, max,
				(void *)e->h.args[(sh->path[1] - 1) & 7]), max);
}

inline_always void read_addr(struct event *e, struct shape *sh)
{
	__u64 len = e->h.args[sh->addr & 7];

	if (len > ADDR_MAX)
		len = ADDR_MAX;
	if (!bpf_probe_read_user(e->text, len, (void *)e->h.args[(sh->addr - 1) & 7]))
		e->h.len[0] = len;
}

/* Reads a member of a structure of the kernel; zero where that fails. */
#define READ(p, member) ({ \
	typeof((p)->member) v = 0; \
	bpf_probe_read_kernel(&v, sizeof(v), &(p)->member); \
	v; })

/*
 * What descriptor fd of the current task leads to. Whoever shares the table can
 * have closed or replaced it by now; without a file all stays zero.
 */
inline_always void read_file(struct event *e, struct task_struct *task, __u32 fd)
{
	struct files_struct *files = READ(task, files);
	struct fdtable *table = READ(files, fdt);
	struct file *file = 0;
	struct inode *inode;
	struct dentry *dentry;
	__u32 n = e->h.len[0];

	e->h.ino = e->h.dev = e->h.mode = 0;
	if (fd < READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + fd);
	if (!file)
		return;
	inode = READ(file, f_inode);
	e->h.ino = READ(inode, i_ino);
	e->h.dev = READ(READ(inode, i_sb), s_dev);
	e->h.mode = READ(file, f_mode);
	dentry = READ(file, f_path.dentry);
	if (n > PATH_MAX)
		n = PATH_MAX;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				READ(dentry, d_name.name)), NAME_MAX);
}

/* An opened file. The caller has not seen the descriptor yet, and never will
 * where this can't be reported. */
inline_always int opened(struct pt_regs *regs, __u32 fd)
{
	struct task_struct *task = bpf_get_current_task();
	__u32 nr = syscall_nr(regs), alien;
	struct shape *sh = bpf_map_lookup_elem(&shapes, &nr);
	struct scope *s;
	struct event *e;
	__u64 cgroup;

	if (!sh || !(sh->flags & (OPENS | FOREIGN_OPENS)))
		return 0;
	s = scope_of_current(&cgroup);
	if (!s || !(s->flags & AUDIT_OPENS))
		return 0;
	alien = foreign(task) != 0;
	if (!(sh->flags & (alien ? FOREIGN_OPENS : OPENS)))
		return 0;
	e = new_event(1, cgroup);
	if (!e) { /* can't happen; but no event, no file */
		bpf_send_signal(SIGKILL);
		return 0;
	}
	e->h.kind = OPENED;
	e->h.nr = nr;
	e->h.ret = fd;
	syscall_args(regs, e->h.args);
	if (alien)
		e->h.flags = FOREIGN; /* other registers: no path */
	else
		read_paths(e, sh, PATH_MAX);
	read_file(e, task, fd);
	if (emit(&opens, e)) {
		lose(s, &lost_opens);
		bpf_send_signal(SIGKILL);
	}
	return 0;
}

/*
 * Whether the first argument is the caller's own process, as numbered in its
 * pid namespace: then ESRCH tells of a thread that has just ended, which the
 * signals of a runtime (Go's preemption, pthread_kill) run into all the time,
 * and of no other process.
 */
inline_always int at_itself(struct pt_regs *regs)
{
	struct task_struct *task = bpf_get_current_task();
	struct pid *pid = READ(READ(task, group_leader), thread_pid);
	struct upid *own = &pid->numbers[0];
	__u64 a[6];
	__u32 nr = 0;

	bpf_probe_read_kernel(&nr, sizeof(nr), &own[READ(pid, level)].nr);
	syscall_args(regs, a);
	return nr && nr == (__u32)a[0];
}

/* Whether a refusal is to be told, the rate aside. */
inline_always int telling(struct pt_regs *regs, struct shape *sh, struct scope *s, long ret)
{
	if (!(sh->flags & KNOWN))
		return 0;
	if (ret == -ENOENT)
		return sh->flags & MISSING && s->flags & AUDIT_MISSING;
	if (ret == -ESRCH)
		return sh->flags & UNSEEN && !at_itself(regs);
	return 1;
}

/* Tells of a refusal that is within its budget b. */
inline_always void refused(struct pt_regs *regs, struct shape *sh, struct scope *s,
			   struct budget *b, struct event *e)
{
	__u64 told = b->told, skipped = b->skipped;

	e->h.kind = REFUSED;
	e->h.ino = e->h.dev = e->h.mode = 0;
	syscall_args(regs, e->h.args);
	/* Two CPUs may tell of the same ones: twice rather than never. */
	e->h.skipped = skipped > told ? skipped - told : 0;
	if (foreign(bpf_get_current_task()))
		e->h.flags = FOREIGN;
	else if (sh->addr)
		read_addr(e, sh);
	else
		read_paths(e, sh, TOLD_MAX);
	if (emit(&refusals, e))
		lose(s, &lost_refusals);
	else
		b->told = skipped;
}

/*
 * Every system call of the host comes by here while a scope is watched, so the
 * result is looked at first: nearly all leave after one comparison.
 */
SEC("tp_btf/sys_exit")
int on_exit(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	long ret = ctx[1];
	struct budget *b;
	struct shape *sh;
	struct scope *s;
	struct event *e;
	__u64 cgroup;
	__u32 nr;

	if (ret >= 0)
		return auditing && ret <= INT_MAX ? opened(regs, ret) : 0;
	if (ret != -ENOENT && ret != -EACCES && ret != -EPERM && ret != -ESRCH && ret != -EROFS)
		return 0;
	s = scope_of_current(&cgroup);
	if (!s || s->flags & NO_REFUSALS)
		return 0;
	nr = syscall_nr(regs);
	sh = bpf_map_lookup_elem(&shapes, &nr);
	if (!sh || !telling(regs, sh, s, ret))
		return 0;
	b = ret == -ENOENT ? &s->misses : &s->refusals;
	if (over(b, ret == -ENOENT ? misses_per_second : per_second))
		return 0;
	e = new_event(1, cgroup);
	if (!e)
		return 0;
	e->h.nr = nr;
	e->h.ret = ret;
	refused(regs, sh, s, b, e);
	return 0;
}

/* The probe_read helpers are for GPL-compatible programs. */
char licence[] SEC("license") = "Dual MIT/GPL";
