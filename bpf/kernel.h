/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types the planes look at, each with only the fields used.
 * preserve_access_index makes the loader relocate every field against the
 * running kernel's BTF, so offsets here mean nothing.
 */
#ifndef SHUNT_KERNEL_H
#define SHUNT_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define AF_INET 2
#define AF_INET6 10
#define O_NONBLOCK 04000
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define SOL_SOCKET 1
#define SO_SNDBUF 7
#define SOCK_SNDBUF_LOCK 1
#define ENOENT 2
#define EEXIST 17
#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

typedef struct {
	long counter;
} atomic64_t;

struct net {
	u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
};

struct dst_entry {
	struct net_device *dev;
};

struct rb_root {
	void *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct address_space {
	struct rb_root_cached i_mmap;
};

struct file {
	unsigned int f_flags;
	struct address_space *f_mapping;
};

struct sock;

struct socket {
	struct file *file;
	struct sock *sk;
};

struct pt_regs {
	unsigned long orig_ax; /* x86 */
};

struct kernfs_node {
	u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self; /* of its first member's address: see cgroup_of() */
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

typedef struct {
	u32 val;
} kuid_t;

struct proto {
	unsigned long *memory_pressure;
};

struct sock_common {
	volatile unsigned char skc_state;
	u16 skc_num;
	struct proto *skc_prot;
	possible_net_t skc_net;
	unsigned long skc_flags;
	struct sock *skc_listener;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
	kuid_t sk_uid;
	struct dst_entry *sk_dst_cache;
	void *sk_user_data;
	int sk_rcvlowat;
	u32 sk_tsflags; /* 16 bits before 6.6: what lies behind can only make it look set */
	u8 sk_shutdown;
	u8 sk_userlocks : 4;
};

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 copied_seq;
	u32 write_seq;
	u32 snd_nxt;
	u32 rcv_nxt;
	_Bool is_mptcp;
	u8 recvmsg_inq : 1;
	const void *fastopen_rsk;
};

/* sockops' own context, as bpf_cast_to_kern_ctx() gives it. */
struct bpf_sock_ops_kern {
	struct sock *sk;
};

struct sk_msg_sg {
	u32 size;
};

struct sk_msg {
	struct sk_msg_sg sg;
	struct list_head list;
};

struct sk_psock {
	struct list_head ingress_msg;
	u32 msg_tot_len;
};

enum sock_flags { SOCK_ZEROCOPY, SOCK_RCVTSTAMP };

#pragma clang attribute pop

/* Loads through the result fault to 0 instead of failing (kernel 6.2+). */
extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym;

/* A program's context as the kernel has it (kernel 6.2+). */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

#define KERNEL_PTR(type, addr) \
	((struct type *)bpf_rdonly_cast((void *)(addr), bpf_core_type_id_kernel(struct type)))

#endif
