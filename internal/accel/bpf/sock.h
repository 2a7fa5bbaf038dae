/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel's own socket structures say. Everything here only reads. */
#ifndef SHUNT_ACCEL_SOCK_H
#define SHUNT_ACCEL_SOCK_H

#include "maps.h"

static __always_inline struct tcp_sock *tcp_of(u64 addr)
{
	return KERNEL_PTR(tcp_sock, addr);
}

static __always_inline struct sock *sock_of(struct tcp_sock *tp)
{
	return &tp->inet_conn.icsk_inet.sk;
}

/* The address may have been freed and used again since it was noted; loads
 * through it cannot fault. No other socket has the same cookie, and a redirect
 * goes by the cookie. */
static __always_inline int is_socket(struct tcp_sock *tp, u64 cookie)
{
	return sock_of(tp)->__sk_common.skc_cookie.counter == cookie;
}

static __always_inline int has_flag(struct tcp_sock *tp, u64 bit)
{
	return (sock_of(tp)->__sk_common.skc_flags >> bit) & 1;
}

/* G5: ways of reading that know nothing of redirected bytes. */
static __always_inline enum leave special_reader(struct tcp_sock *tp)
{
	struct socket *s = sock_of(tp)->sk_socket;
	struct file *f = s ? KERNEL_PTR(socket, s)->file : 0;
	struct address_space *m = f ? KERNEL_PTR(file, f)->f_mapping : 0;

	if (sock_of(tp)->sk_rcvlowat > 1)
		return LEAVE_LOWAT;
	if (BPF_CORE_READ_BITFIELD(tp, recvmsg_inq))
		return LEAVE_INQ;
	if (sock_of(tp)->sk_tsflags || has_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)))
		return LEAVE_TIMESTAMP;
	/* Mapped to memory: there is no other use for that. */
	if (m && KERNEL_PTR(address_space, m)->i_mmap.rb_root.rb_node)
		return LEAVE_MMAP;
	return LEAVE_NONE;
}

/* And ways of writing. */
static __always_inline enum leave special_writer(struct tcp_sock *tp)
{
	if (has_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
		return LEAVE_ZEROCOPY;
	if (sock_of(tp)->sk_tsflags)
		return LEAVE_TIMESTAMP;
	return LEAVE_NONE;
}

enum blocking { NO_FILE, BLOCKING, NONBLOCKING };

/* NO_FILE: in an accept queue, or closed. */
static __always_inline enum blocking blocking_mode(struct tcp_sock *tp)
{
	struct socket *s = sock_of(tp)->sk_socket;
	struct file *f = s ? KERNEL_PTR(socket, s)->file : 0;

	if (!f)
		return NO_FILE;
	return KERNEL_PTR(file, f)->f_flags & O_NONBLOCK ? NONBLOCKING : BLOCKING;
}

#define SK_USER_DATA_PSOCK 4ULL /* it points to a psock, not to another owner's data */
#define SK_USER_DATA_FLAGS 7ULL

/* Messages looked at when the kernel does not keep a total (before 6.12.75,
 * 6.18.14): a queue of this many counts as full. */
#define QUEUE_SCAN 32

/* A socket that is in a sockmap now; few others have user data of that kind. */
static __always_inline int has_psock(struct sock *sk)
{
	return ((u64)sk->sk_user_data & SK_USER_DATA_PSOCK) != 0;
}

/* Bytes redirected to this socket that its application has not read. */
static __always_inline u32 queued(struct tcp_sock *tp)
{
	u64 data = (u64)sock_of(tp)->sk_user_data; /* low bits are flags */
	struct sk_psock *psock;
	struct list_head *head, *pos;
	u32 sum = 0;
	int i;

	if (!(data & SK_USER_DATA_PSOCK))
		return 0;
	data &= ~SK_USER_DATA_FLAGS;
	psock = KERNEL_PTR(sk_psock, data);
	if (bpf_core_field_exists(psock->msg_tot_len))
		return psock->msg_tot_len;

	head = (void *)(data + bpf_core_field_offset(struct sk_psock, ingress_msg));
	pos = psock->ingress_msg.next;
	for (i = 0; i < QUEUE_SCAN; i++) {
		u64 m;

		if (!pos || pos == head)
			return sum;
		m = (u64)pos - bpf_core_field_offset(struct sk_msg, list);
		sum += KERNEL_PTR(sk_msg, m)->sg.size;
		pos = KERNEL_PTR(list_head, pos)->next;
	}
	return ~0U;
}

static __always_inline int memory_pressure(struct tcp_sock *tp)
{
	struct proto *p = sock_of(tp)->__sk_common.skc_prot;
	unsigned long *flag = p ? KERNEL_PTR(proto, p)->memory_pressure : 0;

	/* A plain load of a long: any struct that begins with one will do. */
	return flag && KERNEL_PTR(list_head, flag)->next;
}

#endif
