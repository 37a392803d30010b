/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The little of the kernel that the guard's programs touch.
 *
 * Structures carry preserve_access_index: the compiler records which member is
 * meant, and the loader finds its offset in the running kernel's own BTF. So
 * only names matter here, not order or size. No header of the build host is
 * included: the same compiler gives the same object everywhere.
 */
#ifndef CLAWBOX_KERNEL_H
#define CLAWBOX_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define inline_always static inline __attribute__((always_inline))

/* Map definitions are types: the loader reads them from BTF. */
#define UINT(name, val) int(*name)[val]
#define TYPE(name, val) typeof(val) *name

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_LPM_TRIE = 11,
	MAP_HASH_OF_MAPS = 13,
	MAP_SOCKMAP = 15,
	MAP_RINGBUF = 27,
	MAP_NO_PREALLOC = 1,
	MAP_MMAPABLE = 1 << 10,
};

enum { SK_DROP = 0, SK_PASS = 1 };

/* Helpers by number: kernel ABI, include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER. */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *val, __u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static __u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static __u64 (*bpf_get_current_uid_gid)(void) = (void *)15;
static long (*bpf_get_current_comm)(void *buf, __u32 len) = (void *)16;
static long (*bpf_sk_release)(void *sk) = (void *)86;
static long (*bpf_send_signal)(__u32 sig) = (void *)109;
static long (*bpf_probe_read_user)(void *to, __u32 len, const void *from) = (void *)112;
static long (*bpf_probe_read_kernel)(void *to, __u32 len, const void *from) = (void *)113;
static long (*bpf_probe_read_user_str)(void *to, __u32 len, const void *from) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *to, __u32 len, const void *from) = (void *)115;
static __u64 (*bpf_get_current_ancestor_cgroup_id)(int level) = (void *)123;
static long (*bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)124;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*bpf_ringbuf_output)(void *ring, void *data, __u64 len, __u64 flags) = (void *)130;
static long (*bpf_d_path)(void *path, void *buf, __u32 len) = (void *)147;

/* Its members, and theirs, are read like any memory: no helper, and zero where
 * a pointer leads nowhere. Linux 5.11. */
struct task_struct;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	__u32 len;
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct super_block {
	__u32 s_dev;
};

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
	__u32 f_mode;
	__u32 f_flags;
};

struct mm_struct {
	struct file *exe_file;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	int level; /* 0 at the top */
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct kuid {
	__u32 val;
};

struct cred {
	struct kuid uid;
};

struct fdtable {
	__u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct fs_struct {
	struct path root, pwd;
};

struct linux_binprm {
	struct file *file;
	const char *filename;
};

struct thread_info {
#if defined(__TARGET_ARCH_x86)
	__u32 status;
#else
	unsigned long flags;
#endif
};

struct pid_namespace;

/* Its size is used too: a number for each pid namespace that sees a process. */
struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	__u32 level;
	struct upid numbers[1];
};

struct task_struct {
	struct thread_info thread_info;
	int tgid;
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct cred *cred;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct files_struct *files;
	struct fs_struct *fs;
	char comm[16];
};

/* What the kernel saved of the caller's registers on entry. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, r10, r8, r9, orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0; /* regs[0] holds the result by now */
	__s32 syscallno;
};
#endif

#pragma clang attribute pop

/* Contexts of cgroup programs: fixed ABI (include/uapi/linux/bpf.h), not relocated. */
struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4;
};

struct bpf_sock_addr {
	__u32 user_family, user_ip4, user_ip6[4], user_port;
	__u32 family, type, protocol;
	__u32 msg_src_ip4, msg_src_ip6[4];
	struct bpf_sock *sk;
};

struct bpf_sock_ops {
	__u32 op, args[4];
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	__u32 remote_port; /* in network order, in the upper half on little endian */
	__u32 local_port;  /* in host order */
};

enum { SOCK_OPS_TCP_CONNECT = 3 };

/* Context of an sk_lookup program: fixed ABI, not relocated. */
struct bpf_sk_lookup {
	__u64 cookie;
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;
	__u32 remote_ip6[4];
	__u32 remote_port;
	__u32 local_ip4;
	__u32 local_ip6[4];
	__u32 local_port;
	__u32 ingress_ifindex;
};

#endif
