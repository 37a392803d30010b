/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Two programs watch scopes: on_exec kills what is not listed, on_exit reports
 * refused system calls and, where a scope asks for it, opened files. Those of
 * net.h look at connections. Everything outside a scope leaves all of them as
 * early as possible.
 */
#include "scope.h"
#include "dir.h"
#include "look.h"
#include "net.h"

/* struct shape.flags; the same bits in syscalls.go */
enum {
	KNOWN = 1,		/* tell of refusals */
	MISSING = 2,		/* also of ENOENT, where the scope asks */
	UNSEEN = 4,		/* also of ESRCH */
	OPENS_FILE = 8,		/* returns the descriptor of a file */
	FOREIGN_OPENS = 16,	/* so does the 32-bit call of this number */
	NAMES_SOCKET = 32,	/* has the address of a socket, which may be a name of AF_UNIX */
	FILLS = 64,		/* takes room: tell where there is none */
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, NR_MAX);
	TYPE(key, __u32);
	TYPE(value, struct shape);
} shapes SEC(".maps");

/*
 * Events are too big for the stack: [0] for on_exec, [1] for on_exit.
 * Tracepoints keep preemption off, so nothing comes in between.
 */
struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, 2);
	TYPE(key, __u32);
	TYPE(value, struct event);
} scratch SEC(".maps");

/*
 * In which scope a cgroup is, if in any: found out once on each CPU. A cgroup
 * keeps its parents for life and no other ever has its number, so only a change
 * of the scopes makes it wrong. For programs that nothing comes in between of.
 */
struct home {
	__u64 cgroup, scope;	/* scope is 0 for none */
	__u64 changes;		/* of the scopes, when it was found out */
};

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, HOMES);
	TYPE(key, __u32);
	TYPE(value, struct home);
} homes SEC(".maps");

struct {
	UINT(type, MAP_RINGBUF);
	UINT(max_entries, 1 << 20);
} refusals SEC(".maps");

/* scope_of_current with a memory: most calls find their cgroup there. */
inline_always struct scope *scope_of(struct task_struct *task, __u64 *id)
{
	__u64 own = task->cgroups->dfl_cgrp->kn->id, changes;
	struct shared *all = ours();
	struct scope *s;
	struct home *h;
	__u32 k = own % HOMES;

	if (!all || !all->watching)
		return 0;
	changes = *(volatile __u32 *)&all->changes;
	h = bpf_map_lookup_elem(&homes, &k);
	if (!h)
		return scope_of_current(id);
	if (own && h->cgroup == own && h->changes == changes) {
		*id = h->scope;
		return *id ? bpf_map_lookup_elem(&scopes, id) : 0;
	}
	s = scope_of_current(id);
	h->cgroup = own;
	h->scope = s ? *id : 0;
	h->changes = changes;
	return s;
}

/* Read by the loader alone. */
struct {
	UINT(type, MAP_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, SCOPES_MAX);
	TYPE(key, __u64);
	TYPE(value, struct label);
} labels SEC(".maps");

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
	__u32 n, slot = 0;
	struct scope *s;
	struct event *e;
	__u64 cgroup;

	s = scope_of_current(&cgroup);
	if (!s)
		return 0;
	e = bpf_map_lookup_elem(&scratch, &slot);
	if (!e) { /* can't happen; but no event, no exec */
		bpf_send_signal(SIGKILL);
		return 0;
	}
	begin(&e->h, cgroup, s);
	e->h.kind = EXEC;
	e->h.ret = 0;
	e->h.ino = file->f_inode->i_ino;
	e->h.dev = file->f_inode->i_sb->s_dev;
	if (!may_exec(list_of(s), e->h.dev, e->h.ino)) {
		e->h.ret = bpf_send_signal(SIGKILL);
		e->h.flags = KILLED;
	}
	n = clamp(bpf_probe_read_kernel_str(e->text, PATH_MAX, bprm->filename), PATH_MAX);
	e->h.len[0] = n;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				file->f_path.dentry->d_name.name), NAME_MAX);
	if (!emit(&execs, EXECS, s, e, size_of(e)))
		bpf_send_signal(SIGKILL); /* what can't be recorded may not run */
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
	return t->thread_info.status & 2; /* TS_COMPAT */
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
	return t->thread_info.flags >> 22 & 1; /* TIF_32BIT */
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

/* Tells which file it is and how it was opened, and gives its name's place. Both
 * structures are larger than what is read of them. */
inline_always struct dentry *identify(struct head *h, struct file *file)
{
	__u64 f[16], i[10]; /* a helper that fails leaves zeros */

	if (!WITHIN(struct file, f_inode, f) || !WITHIN(struct file, f_path.dentry, f) || !WITHIN(struct file, f_mode, f) ||
	    !WITHIN(struct inode, i_sb, i) || !WITHIN(struct inode, i_ino, i)) {
		struct inode *inode = READ(file, f_inode);

		h->ino = READ(inode, i_ino);
		h->dev = READ(READ(inode, i_sb), s_dev);
		h->mode = READ(file, f_mode);
		return READ(file, f_path.dentry);
	}
	bpf_probe_read_kernel(f, sizeof(f), file);
	bpf_probe_read_kernel(i, sizeof(i), FROM(f, struct file, f_inode));
	h->ino = FROM(i, struct inode, i_ino);
	h->dev = READ(FROM(i, struct inode, i_sb), s_dev);
	h->mode = FROM(f, struct file, f_mode);
	return FROM(f, struct file, f_path.dentry);
}

/*
 * What descriptor fd of the current task leads to. Whoever shares the table can
 * have closed or replaced it by now; without a file all stays zero.
 */
inline_always void read_file(struct event *e, struct task_struct *task, __u32 fd)
{
	struct fdtable *table = task->files->fdt;
	struct file *file = 0;
	struct dentry *dentry;
	__u32 n = e->h.len[0];

	e->h.ino = e->h.dev = e->h.mode = 0;
	if (fd < table->max_fds)
		bpf_probe_read_kernel(&file, sizeof(file), table->fd + fd);
	if (!file)
		return;
	dentry = identify(&e->h, file);
	if (n > PATH_MAX)
		n = PATH_MAX;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				READ(dentry, d_name.name)), NAME_MAX);
}

/*
 * A socket that was connected to a name of AF_UNIX, or asked to send there: the
 * programs of net.h see addresses of IP alone. The address is the caller's, read
 * after the call. Tells whether e holds one.
 */
inline_always int names_socket(struct event *e, struct shape *sh, struct pt_regs *regs)
{
	e->h.len[0] = e->h.len[1] = e->h.len[2] = 0;
	syscall_args(regs, e->h.args);
	read_addr(e, sh);
	return e->h.len[0] > 2 && *(__u16 *)e->text == AF_UNIX;
}

/* Makes e an event of that, text and arguments kept. */
inline_always void name_event(struct event *e, __u64 cgroup, struct scope *s, struct shape *sh, long ret)
{
	__u16 len = e->h.len[0];

	begin(&e->h, cgroup, s);
	e->h.kind = CONNECT;
	e->h.nr = sh->addr == 2 ? CONNECTS_TO : SENDS_TO;
	e->h.ret = ret;
	e->h.ino = e->h.dev = e->h.mode = 0;
	e->h.args[3] = e->h.args[4] = 0;
	e->h.len[0] = len;
}

/* An opened file. The caller has not seen the descriptor yet, and never will
 * where this can't be reported. Where a hook tells of files, what is left is
 * O_PATH, which no hook sees. */
inline_always int opened(struct pt_regs *regs, __u32 fd, __u32 hooked)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 nr = syscall_nr(regs), alien, socket, one = 1;
	struct shape *sh = bpf_map_lookup_elem(&shapes, &nr);
	struct scope *s;
	struct event *e;
	__u64 cgroup, list;

	if (!sh || !(sh->flags & (OPENS_FILE | FOREIGN_OPENS | NAMES_SOCKET)))
		return 0;
	s = scope_of(task, &cgroup);
	if (!s)
		return 0;
	alien = foreign(task) != 0;
	list = list_of(s);
	socket = sh->flags & NAMES_SOCKET && list & AUDIT_CONNECTS && !alien;
	if (!socket && (!(list & AUDIT_OPENS) || !(sh->flags & (alien ? FOREIGN_OPENS : OPENS_FILE))))
		return 0;
	e = bpf_map_lookup_elem(&scratch, &one);
	if (!e) { /* can't happen; but no event, no file */
		bpf_send_signal(SIGKILL);
		return 0;
	}
	if (socket) {
		if (!names_socket(e, sh, regs))
			return 0;
		name_event(e, cgroup, s, sh, 0);
		if (!emit(&connects, CONNECTS, s, e, size_of(e)))
			bpf_send_signal(SIGKILL);
		return 0;
	}
	begin(&e->h, cgroup, s);
	e->h.kind = OPENED;
	e->h.nr = nr;
	e->h.ret = fd;
	syscall_args(regs, e->h.args);
	if (alien)
		e->h.flags = FOREIGN; /* other registers: no path */
	else
		read_paths(e, sh, PATH_MAX);
	read_file(e, task, fd);
	if (hooked && !(e->h.mode & FMODE_PATH))
		return 0;
	if (!alien)
		read_dir(e, sh, task);
	if (!emit(&opens, OPENS, s, e, size_of(e)))
		bpf_send_signal(SIGKILL);
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
	struct task_struct *task = bpf_get_current_task_btf();
	struct pid *pid = task->group_leader->thread_pid;
	struct upid *own = &pid->numbers[0];
	__u64 a[6];
	__u32 nr = 0;

	bpf_probe_read_kernel(&nr, sizeof(nr), &own[pid->level].nr);
	syscall_args(regs, a);
	return nr && nr == (__u32)a[0];
}

/* Whether a refusal is to be told, the rate aside. */
inline_always int telling(struct pt_regs *regs, struct shape *sh, __u64 list, long ret)
{
	if (!(sh->flags & KNOWN))
		return 0;
	if (ret == -ECONNREFUSED || (ret == -ENOENT && sh->flags & NAMES_SOCKET))
		return sh->flags & NAMES_SOCKET && list & AUDIT_CONNECTS;
	if (ret == -ENOENT)
		return sh->flags & MISSING && list & AUDIT_MISSING;
	if (ret == -ESRCH)
		return sh->flags & UNSEEN && !at_itself(regs);
	return 1;
}

inline_always void read_call(struct pt_regs *regs, struct shape *sh, struct event *e)
{
	e->h.len[0] = e->h.len[1] = 0;
	syscall_args(regs, e->h.args);
	if (sh->addr)
		read_addr(e, sh);
	else
		read_paths(e, sh, TOLD_MAX);
}

/* Tells of a refusal that is within its budget b. */
inline_always void refused(struct event *e, struct scope *s, struct budget *b, int kind)
{
	__u64 told = b->told, skipped = b->skipped;

	e->h.kind = kind;
	e->h.ino = e->h.dev = e->h.mode = 0;
	/* Two CPUs may tell of the same ones: twice rather than never. */
	e->h.skipped = skipped > told ? skipped - told : 0;
	if (emit(&refusals, REFUSALS, s, e, size_of(e)))
		b->told = skipped;
}

/*
 * A file system that has no room, or no inode, left. Which one, is told by the path,
 * or by the name of the file that the descriptor leads to. The 32-bit calls have
 * other numbers and are not told.
 */
inline_always int full(struct pt_regs *regs, long ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 nr = syscall_nr(regs), one = 1;
	struct shape *sh = bpf_map_lookup_elem(&shapes, &nr);
	struct scope *s;
	struct event *e;
	__u64 cgroup;
	__u16 text[3];

	if (!sh || !(sh->flags & FILLS) || foreign(task))
		return 0;
	s = scope_of(task, &cgroup);
	e = bpf_map_lookup_elem(&scratch, &one);
	if (!s || !e || list_of(s) & NO_REFUSALS || over(&s->fulls, FULLS_MAX))
		return 0;
	read_call(regs, sh, e);
	read_dir(e, sh, task);
	text[0] = e->h.len[0], text[1] = e->h.len[1], text[2] = e->h.len[2];
	begin(&e->h, cgroup, s);
	e->h.len[0] = text[0], e->h.len[1] = text[1], e->h.len[2] = text[2];
	e->h.nr = nr;
	e->h.ret = ret;
	refused(e, s, &s->fulls, FULL);
	return 0;
}

/*
 * Every system call of the host comes by here while a scope is watched, so the
 * result is looked at first: nearly all leave after one comparison.
 */
SEC("tp_btf/sys_exit")
int on_exit(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	__u16 text[3];
	__u32 nr, one = 1, alien;
	long ret = ctx[1];
	struct task_struct *task;
	struct shared *all;
	struct budget *b;
	struct shape *sh;
	struct scope *s;
	struct event *e;
	__u64 cgroup, list;

	if (ret >= 0) {
		all = ours();
		return all && all->auditing && ret <= INT_MAX ? opened(regs, ret, all->hooked) : 0;
	}
	if (ret == -ENOSPC || ret == -EDQUOT)
		return full(regs, ret);
	if (ret != -ENOENT && ret != -EACCES && ret != -EPERM && ret != -ESRCH && ret != -EROFS && ret != -ECONNREFUSED)
		return 0;
	task = bpf_get_current_task_btf();
	s = scope_of(task, &cgroup);
	if (!s)
		return 0;
	list = list_of(s);
	if (list & NO_REFUSALS)
		return 0;
	nr = syscall_nr(regs);
	sh = bpf_map_lookup_elem(&shapes, &nr);
	if (!sh || !telling(regs, sh, list, ret))
		return 0;
	e = bpf_map_lookup_elem(&scratch, &one);
	all = ours();
	if (!e || !all)
		return 0;
	alien = foreign(task);
	if (sh->flags & NAMES_SOCKET && (ret == -ENOENT || ret == -ECONNREFUSED)) {
		if (alien || !names_socket(e, sh, regs) || over(&s->misses, all->misses_per_second))
			return 0;
		name_event(e, cgroup, s, sh, ret);
		emit(&refusals, REFUSALS, s, e, size_of(e)); /* it has failed already */
		return 0;
	}
	if (alien) /* other numbers, other registers */
		syscall_args(regs, e->h.args), e->h.len[0] = e->h.len[1] = e->h.len[2] = 0;
	else
		read_call(regs, sh, e), read_dir(e, sh, task);
	if (ret == -ENOENT && list & KNOWS_READABLE && !alien && may_look(e, list))
		return 0;
	b = ret == -ENOENT ? &s->misses : &s->refusals;
	if (over(b, ret == -ENOENT ? all->misses_per_second : all->per_second))
		return 0;
	text[0] = e->h.len[0], text[1] = e->h.len[1], text[2] = e->h.len[2];
	begin(&e->h, cgroup, s);
	e->h.len[0] = text[0], e->h.len[1] = text[1], e->h.len[2] = text[2];
	e->h.flags = alien ? FOREIGN : 0;
	e->h.nr = nr;
	e->h.ret = ret;
	refused(e, s, b, REFUSED);
	return 0;
}

#include "trap.h"

/* The probe_read helpers are for GPL-compatible programs. */
char licence[] SEC("license") = "Dual MIT/GPL";
