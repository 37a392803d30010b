/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the kernel asks before it acts: the same questions are answered by BPF
 * LSM programs (lsm.c) and by programs that replace the result of the
 * security_* functions (modify.c). Both can be preempted and can meet on one
 * CPU, so each call takes scratch memory that nobody else has.
 *
 * HOOK(name, function) begins a program; its arguments are ctx[0] and so on.
 */
#include "scope.h"

/* struct file.f_mode and f_flags, include/linux/fs.h */
enum {
	FMODE_NOACCOUNT = 1 << 29,	/* the file behind one of an overlay */
	FMODE_EXEC_FLAG = 1 << 5,	/* opened by execve; open(2) can't set it */
};

#define DESKS 4

/* Scratch memory for one call. */
struct desk {
	__u32 taken;
	__u32 pad;
	struct event e;
};

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, DESKS);
	TYPE(key, __u32);
	TYPE(value, struct desk);
} desks SEC(".maps");

/*
 * A desk of this CPU that is free. Of two that count up, one at most reads 1:
 * whoever comes in between reads more and goes on to the next.
 */
inline_always struct desk *sit(void)
{
	for (__u32 i = 0; i < DESKS; i++) {
		__u32 k = i;
		struct desk *d = bpf_map_lookup_elem(&desks, &k);

		if (!d)
			return 0;
		__sync_fetch_and_add(&d->taken, 1);
		if (*(volatile __u32 *)&d->taken == 1)
			return d;
		__sync_fetch_and_add(&d->taken, -1);
	}
	return 0;
}

inline_always void leave(struct desk *d) { __sync_fetch_and_add(&d->taken, -1); }

/*
 * security_bprm_creds_from_file: once for each execve, when the last of the
 * interpreters is known and nothing is lost yet, so that a refusal is an
 * ordinary EPERM. An allowed program has its event when it has been loaded.
 */
HOOK(on_program, bprm_creds_from_file)
int on_program(__u64 *ctx)
{
	struct linux_binprm *bprm = (void *)ctx[0];
	struct file *file = (void *)ctx[1];
	long before = (int)ctx[2];
	struct scope *s;
	struct event *e;
	struct desk *d;
	__u64 cgroup, list, ino;
	__u32 dev, n;

	if (before) /* refused already; its event is that of the system call */
		return -EPERM; /* a bounded value, as newer kernels want it */
	s = scope_of_current(&cgroup);
	if (!s)
		return 0;
	list = list_of(s);
	ino = file->f_inode->i_ino;
	dev = file->f_inode->i_sb->s_dev;
	if (may_exec(list, dev, ino))
		return 0;
	d = sit();
	if (!d) {
		lose(s, EXECS);
		return -EPERM;
	}
	e = &d->e;
	begin(&e->h, cgroup, s);
	e->h.kind = EXEC;
	e->h.flags = DENIED;
	e->h.ret = -EPERM;
	if (list & KILL) {
		e->h.ret = bpf_send_signal(SIGKILL);
		e->h.flags = DENIED | KILLED;
	}
	e->h.ino = ino;
	e->h.dev = dev;
	n = clamp(bpf_probe_read_kernel_str(e->text, PATH_MAX, bprm->filename), PATH_MAX);
	e->h.len[0] = n;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				file->f_path.dentry->d_name.name), NAME_MAX);
	emit(&execs, EXECS, s, e, size_of(e));
	leave(d);
	return -EPERM;
}

/*
 * security_file_open: every open but O_PATH, whatever call or ring it came by.
 * The path is the kernel's own and can't be raced. What can't be told is refused.
 */
HOOK(on_open, file_open)
int on_open(__u64 *ctx)
{
	struct file *file = (void *)ctx[0];
	long before = (int)ctx[1];
	struct shared *all = ours();
	struct scope *s;
	struct event *e;
	struct desk *d;
	__u64 cgroup;
	int answer;
	__u32 n;

	if (before)
		return -EPERM;
	if (!all || !all->auditing)
		return 0;
	if (file->f_mode & FMODE_NOACCOUNT || file->f_flags & FMODE_EXEC_FLAG)
		return 0;
	s = scope_of_current(&cgroup);
	if (!s || !(list_of(s) & AUDIT_OPENS))
		return 0;
	d = sit();
	if (!d) {
		lose(s, OPENS);
		return -EPERM;
	}
	e = &d->e;
	begin(&e->h, cgroup, s);
	e->h.kind = OPENED;
	e->h.nr = 0xffff; /* no system call in particular */
	e->h.ret = 0;
	e->h.ino = file->f_inode->i_ino;
	e->h.dev = file->f_inode->i_sb->s_dev;
	e->h.mode = file->f_mode;
	n = clamp(bpf_d_path(&file->f_path, e->text, PATH_MAX), PATH_MAX);
	e->h.len[0] = n;
	e->h.len[1] = clamp(bpf_probe_read_kernel_str(e->text + n, NAME_MAX,
				file->f_path.dentry->d_name.name), NAME_MAX);
	answer = emit(&opens, OPENS, s, e, size_of(e)) ? 0 : -EPERM;
	leave(d);
	return answer;
}

char licence[] SEC("license") = "Dual MIT/GPL";
