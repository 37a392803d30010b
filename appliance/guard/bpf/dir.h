/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The name of a folder, spelled from its end by walking up as the kernel's
 * prepend_path (fs/d_path.c) does: what a relative path was relative to, read in
 * the process itself. No helper gives it in a tracepoint.
 */
#ifndef CLAWBOX_DIR_H
#define CLAWBOX_DIR_H

#include "scope.h"

#define DIR_MAX 1024
#define DEPTH 20	/* steps up, mounts included; deeper folders are not named */
#define DESK (2 * PATH_MAX - DIR_MAX - NAME_MAX)	/* where in text it is spelled */

enum { AT_FDCWD = -100 };

inline_always struct mount *mount_of(struct vfsmount *m)
{
	return (void *)m - __builtin_preserve_field_info(((struct mount *)0)->mnt, 0);
}

/* Where the walk stands: at the folder d of the mount mnt. */
struct walk {
	struct dentry *d, *top;
	struct vfsmount *mnt, *topmnt;
	__u32 pos;	/* where what is spelled begins */
	__u32 there;	/* the root of the task is reached */
};

/* One step up. Tells whether the walk is over. A function of its own, so that the
 * loop is small enough to unroll: older verifiers are particular about others. */
static __attribute__((noinline)) int step(struct walk *w, struct event *e)
{
	__u32 pos = w->pos, len;
	struct mount *m;

	if (!w->d || !e)
		return 1;
	if (w->d == w->top && w->mnt == w->topmnt)
		return w->there = 1;
	if (w->d == READ(w->mnt, mnt_root)) {
		m = mount_of(w->mnt);
		w->d = READ(m, mnt_mountpoint);
		w->mnt = &READ(m, mnt_parent)->mnt;
		return 0;
	}
	len = READ(w->d, d_name.len);
	if (len > NAME_MAX - 1 || pos < len + 1)
		return 1;
	pos = (pos - len - 1) & (DIR_MAX - 1);
	e->text[DESK + pos] = '/';
	bpf_probe_read_kernel(e->text + DESK + pos + 1, len & (NAME_MAX - 1), READ(w->d, d_name.name));
	w->d = READ(w->d, d_parent);
	w->pos = pos;
	return 0;
}

/* Spells a folder into e, up to the root of the task. Tells where it begins, or 0
 * if it can't be named. */
inline_always __u32 spell(struct event *e, struct walk *w)
{
	w->pos = DIR_MAX;
	w->there = 0;
	e->text[DESK + DIR_MAX - 1] = '/'; /* the root itself */
	#pragma clang loop unroll(full)
	for (int i = 0; i < DEPTH; i++)
		if (step(w, e))
			break;
	if (!w->there)
		return 0;
	return w->pos == DIR_MAX ? DIR_MAX - 1 : w->pos;
}

/* Appends the folder that path[0] of a call is relative to or, where it has a
 * descriptor alone, the file behind that. */
static __attribute__((noinline)) int read_dir(struct event *e, struct shape *sh, struct task_struct *task)
{
	struct fs_struct *fs = task->fs;
	struct walk w = {fs->pwd.dentry, fs->root.dentry, fs->pwd.mnt, fs->root.mnt};
	struct fdtable *table = task->files->fdt;
	__u32 n = e->h.len[0] + e->h.len[1], pos;
	struct file *file = 0;
	int fd;

	e->h.len[2] = 0;
	if (sh->path[0] ? e->h.len[0] < 2 || e->text[0] == '/' : !sh->dir)
		return 0;
	fd = sh->dir ? (int)e->h.args[(sh->dir - 1) & 7] : AT_FDCWD;
	if (fd != AT_FDCWD) {
		if ((__u32)fd >= table->max_fds)
			return 0;
		bpf_probe_read_kernel(&file, sizeof(file), table->fd + fd);
		if (!file)
			return 0;
		w.d = READ(file, f_path.dentry);
		w.mnt = READ(file, f_path.mnt);
	}
	pos = spell(e, &w);
	if (!pos || n > PATH_MAX + NAME_MAX)
		return 0;
	e->text[DESK + DIR_MAX] = 0;
	bpf_probe_read_kernel(e->text + n, (DIR_MAX - pos + 1) & (2 * DIR_MAX - 1), e->text + DESK + (pos & (DIR_MAX - 1)));
	e->h.len[2] = DIR_MAX - pos + 1;
	return 0;
}

#endif
