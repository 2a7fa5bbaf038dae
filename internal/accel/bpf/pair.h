/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * G2: who belongs to whom, and how a pair is taken apart.
 */
#ifndef SHUNT_ACCEL_PAIR_H
#define SHUNT_ACCEL_PAIR_H

#include "sock.h"
#include "tap.h"

static __always_inline int is_loopback(const u32 addr[4])
{
	if (addr[0] | addr[1])
		return 0;
	if (addr[2] == bpf_htonl(0xffff))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !addr[2] && addr[3] == bpf_htonl(1);
}

static __always_inline void tuple_of(struct bpf_sock_ops *ctx, struct tuple *t)
{
	__builtin_memset(t, 0, sizeof(*t));
	if (ctx->family == AF_INET) {
		t->laddr[2] = t->raddr[2] = bpf_htonl(0xffff);
		t->laddr[3] = ctx->local_ip4;
		t->raddr[3] = ctx->remote_ip4;
		/* Or the compiler merges the branches into reads through a
		 * computed context pointer, which the verifier refuses. */
		barrier();
	} else {
		t->laddr[0] = ctx->local_ip6[0];
		t->laddr[1] = ctx->local_ip6[1];
		t->laddr[2] = ctx->local_ip6[2];
		t->laddr[3] = ctx->local_ip6[3];
		t->raddr[0] = ctx->remote_ip6[0];
		t->raddr[1] = ctx->remote_ip6[1];
		t->raddr[2] = ctx->remote_ip6[2];
		t->raddr[3] = ctx->remote_ip6[3];
		barrier();
	}
	t->lport = ctx->local_port;
	t->rport = bpf_ntohl(ctx->remote_port);
	/* Every namespace has its own 127.0.0.1; other addresses must match
	 * across namespaces, and the sequence proof keeps strangers apart. */
	if (is_loopback(t->laddr) || is_loopback(t->raddr))
		t->netns = bpf_get_netns_cookie(ctx);
}

static __always_inline void mirror(const struct tuple *t, struct tuple *m)
{
	__builtin_memcpy(m->laddr, t->raddr, sizeof(m->laddr));
	__builtin_memcpy(m->raddr, t->laddr, sizeof(m->raddr));
	m->netns = t->netns;
	m->lport = t->rport;
	m->rport = t->lport;
	m->pad = 0;
}

static __always_inline void workload_of(u64 netns, u8 side, const struct tuple *t, struct workload *w)
{
	__builtin_memset(w, 0, sizeof(*w));
	w->netns = netns;
	w->side = side;
	w->port = side == SIDE_ACTIVE ? t->rport : t->lport;
}

/* G5: its readers were seen in splice(2). */
static __always_inline int excluded(u64 netns, u8 side, const struct tuple *t)
{
	struct workload w;

	workload_of(netns, side, t, &w);
	return bpf_map_lookup_elem(&shunt_exclusions, &w) != 0;
}

static __always_inline void remember_reader(const struct conn *c)
{
	struct workload w;
	u8 seen = 1;

	workload_of(c->netns, c->side, &c->tuple, &w);
	if (bpf_map_update_elem(&shunt_readers, &w, &seen, BPF_ANY))
		fault(FAULT_READER);
}

static __always_inline int known_reader(const struct conn *c)
{
	struct workload w;

	workload_of(c->netns, c->side, &c->tuple, &w);
	return bpf_map_lookup_elem(&shunt_readers, &w) != 0;
}

/* The two ends of one connection, and of no other, have each other's next
 * sequence numbers: 64 bits that a stranger with the same tuple would have
 * to share by chance. */
static __always_inline int proven_pair(const struct conn *a, const struct conn *b)
{
	return a->snd_nxt == b->rcv_nxt && a->rcv_nxt == b->snd_nxt;
}

/* A FIN takes one sequence number, which its reader consumes with the EOF. */
static __always_inline u32 fin_consumed(struct tcp_sock *tp)
{
	switch (sock_of(tp)->__sk_common.skc_state) {
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return tp->copied_seq == tp->rcv_nxt;
	}
	return 0;
}

/*
 * No redirected byte towards `to` is queued or on its way: all that `from`
 * promised was consumed. What was consumed beyond the stack's bytes came from
 * the queue. Modulo 2^32, as sequence numbers are; a byte missing, as of a
 * message that the kernel could queue only in part, keeps the answer at "no",
 * which is the safe one.
 *
 * The caller has set from->leaving before. Together with redirect(), which
 * promises first and looks at leaving then, one of the two sees the other.
 */
static __always_inline int quiet(struct conn *from, struct conn *to, struct tcp_sock *tp)
{
	u32 promised = __sync_fetch_and_add(&from->redirected_bytes, 0);
	/* Before copied_seq: stack bytes read in between must not pass for
	 * redirected ones. */
	u32 consumed = __sync_fetch_and_add(&to->consumed, 0);
	u32 by_stack = tp->copied_seq - to->copied_seq - fin_consumed(tp);

	return promised == consumed - by_stack;
}

/* Takes `own` out of the map for good if nothing can be lost by it. */
static __always_inline int try_leave(u64 cookie, struct conn *own, struct conn *peer)
{
	struct tcp_sock *tp = tcp_of(own->sk);
	long err;

	if (own->gone)
		return 1;
	/* Set after own's, and by others: until then the peer may still promise. */
	if (!*(volatile u32 *)&peer->leaving)
		return 0;
	if (!is_socket(tp, cookie) || queued(tp) || !quiet(peer, own, tp))
		return 0;
	err = bpf_map_delete_elem(&shunt_socks, &cookie);
	if (err && err != -ENOENT) { /* ENOENT: closed, or the peer was faster */
		fault(FAULT_LEAVE);
		return 0;
	}
	own->gone = 1;
	return 1;
}

/* Both directions stop redirecting; the sockets follow when they are quiet. */
static __always_inline void start_leaving(struct conn *own, struct conn *peer, enum leave why)
{
	struct stats *s = stats();

	if (__sync_val_compare_and_swap(&own->leaving, LEAVE_NONE, why) == LEAVE_NONE) {
		if (s)
			count(&s->left[why], 1);
		tap_left(own, why);
	}
	__sync_val_compare_and_swap(&peer->leaving, LEAVE_NONE, why);
}

#endif
