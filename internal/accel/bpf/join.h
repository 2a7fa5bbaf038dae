/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pairs the two ends of a local connection while it is established. */
#ifndef SHUNT_ACCEL_JOIN_H
#define SHUNT_ACCEL_JOIN_H

#include "account.h"
#include "select.h"

/* The kernel doubles it for its own overhead. */
#define SPILL_SNDBUF (64 << 10)
/* Bytes through the stack that make a sender a bulk sender. */
#define BULK (1 << 20)

/* A SYN arrived for a selected local listener. This runs before the SYN-ACK
 * leaves, so the connecting end finds the note when it becomes established. */
static __always_inline void note_syn(struct bpf_sock_ops *ctx)
{
	struct sock *listener = listener_of(ctx);
	struct note note = { .syn = SYN_SEEN, .listener = (u64)listener };
	struct tuple own, peer;

	tuple_of(ctx, &own);
	if (!judge(&note, listener, &own, own.lport))
		return;
	mirror(&own, &peer);
	if (bpf_map_update_elem(&shunt_syns, &peer, &note, BPF_ANY))
		fault(FAULT_SYN_INSERT);
}

/*
 * G4: a blocking read inside tcp_bpf_recvmsg gives EAGAIN on any wake-up that
 * brings no data (a signal, SIGCONT, a tracer, a state change) and ignores
 * MSG_WAITALL. Only plain TCP gets these right, so blocking sockets stay out.
 * A socket in the accept queue has no file yet: its listener's mode stands for
 * it, redirect() looks again when it has one.
 */
static __always_inline int may_block(struct tcp_sock *tp)
{
	return !accept_blocking && blocking_mode(tp) != NONBLOCKING;
}

static __always_inline int is_foreign(struct tcp_sock *tp)
{
	return (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp) || tp->inet_conn.icsk_ulp_ops || sock_of(tp)->sk_user_data;
}

/* While the stack is in use. */
#define STACK_FLAGS (BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG)
#define OUR_FLAGS (BPF_SOCK_OPS_STATE_CB_FLAG | STACK_FLAGS)

/* Switches callbacks off again, but not those of another program. */
static __always_inline void no_callbacks(struct bpf_sock_ops *ctx, struct conn *own, u32 flags)
{
	u32 off = flags & ~own->other_flags;

	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~off))
		fault(FAULT_CB_FLAGS);
}

/* Puts the socket into both tables; REFUSE_NONE or why not. */
static __always_inline enum refusal insert(struct bpf_sock_ops *ctx, struct tcp_sock *tp, u64 listener,
					   enum side side, u64 *cookie, struct tuple *t,
					   struct conn *peer, u64 peer_cookie)
{
	struct conn c = {};

	c.sk = (u64)tp;
	c.listener = listener;
	c.netns = bpf_get_netns_cookie(ctx);
	c.born = bpf_ktime_get_ns();
	c.tuple = *t;
	c.snd_nxt = tp->snd_nxt;
	c.rcv_nxt = tp->rcv_nxt;
	c.copied_seq = tp->copied_seq;
	c.other_flags = ctx->bpf_sock_ops_cb_flags;
	c.side = side;
	c.route = ROUTE_UNPAIRED;
	c.proven = trust_workload && known_reader(&c);
	if (peer) {
		if (!proven_pair(&c, peer) || !is_socket(tcp_of(peer->sk), peer_cookie))
			return REFUSE_PROOF;
		c.peer_sk = peer->sk;
		c.peer_cookie = peer_cookie;
		c.across = c.netns != peer->netns;
	}
	if (bpf_map_update_elem(&shunt_conns, cookie, &c, BPF_NOEXIST)) {
		fault(FAULT_CONN_INSERT);
		return REFUSE_FULL;
	}
	if (bpf_sock_hash_update(ctx, &shunt_socks, cookie, BPF_NOEXIST)) {
		fault(FAULT_SOCK_INSERT);
		bpf_map_delete_elem(&shunt_conns, cookie);
		return REFUSE_FOREIGN;
	}
	/* STATE ends the entry's life. */
	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | OUR_FLAGS)) {
		fault(FAULT_CB_FLAGS);
		bpf_map_delete_elem(&shunt_socks, cookie);
		bpf_map_delete_elem(&shunt_conns, cookie);
		return REFUSE_FULL;
	}
	return REFUSE_NONE;
}

static __always_inline void join_active(struct bpf_sock_ops *ctx, struct tcp_sock *tp)
{
	struct note own = {}, *note, syn;
	u64 cookie, none = 0;
	enum refusal why;
	struct tuple t;
	long err;

	seen();
	tuple_of(ctx, &t);
	if (!judge(&own, sock_of(tp), &t, t.rport))
		return refused(REFUSE_UNSELECTED);
	note = bpf_map_lookup_elem(&shunt_syns, &t);
	if (!note)
		return refused(unjoined(&own));
	syn = *note;
	bpf_map_delete_elem(&shunt_syns, &t);
	if (syn.syn == SYN_FASTOPEN)
		return refused(REFUSE_FASTOPEN);
	if (!both_select(&own, &syn))
		return refused(REFUSE_UNSELECTED);
	err = bpf_map_update_elem(&shunt_waiting, &t, &none, BPF_NOEXIST);
	if (err) {
		if (err != -EEXIST)
			fault(FAULT_PAIR_INSERT);
		return refused(err == -EEXIST ? REFUSE_COLLISION : REFUSE_FULL);
	}
	if (may_block(tp))
		return refused(REFUSE_BLOCKING);
	if (excluded(bpf_get_netns_cookie(ctx), SIDE_ACTIVE, &t))
		return refused(REFUSE_EXCLUDED);
	if (is_foreign(tp))
		return refused(REFUSE_FOREIGN);
	cookie = bpf_get_socket_cookie(ctx);
	why = insert(ctx, tp, syn.listener, SIDE_ACTIVE, &cookie, &t, 0, 0);
	if (why != REFUSE_NONE)
		return refused(why);
	if (bpf_map_update_elem(&shunt_waiting, &t, &cookie, BPF_EXIST))
		fault(FAULT_PAIR_INSERT);
}

/* The accepting end decides for both: where it refuses, the connecting end
 * leaves the map again. Nothing was redirected yet, so nothing can be lost. */
static __always_inline void join_passive(struct bpf_sock_ops *ctx, struct tcp_sock *tp)
{
	u64 cookie, peer_cookie, *waiting;
	enum refusal why = REFUSE_PROOF;
	struct tuple t, m;
	struct note *note;
	struct conn *peer;
	struct stats *s;

	tuple_of(ctx, &t);
	mirror(&t, &m);
	if (tp->fastopen_rsk) {
		/* Established by the SYN: the connecting end is not yet, and
		 * learns from the note that there is nobody to wait for. */
		note = bpf_map_lookup_elem(&shunt_syns, &m);
		if (note)
			note->syn = SYN_FASTOPEN;
		return;
	}
	waiting = bpf_map_lookup_elem(&shunt_waiting, &m);
	if (!waiting) {
		/* A connecting end here would have taken the note. No note: the
		 * SYN was answered with a cookie, and a connecting end here has
		 * counted itself. */
		note = bpf_map_lookup_elem(&shunt_syns, &m);
		why = note ? unjoined(note) : REFUSE_NONE;
		if (note && !bpf_map_delete_elem(&shunt_syns, &m)) {
			seen();
			refused(why);
		}
		return;
	}
	peer_cookie = *waiting;
	bpf_map_delete_elem(&shunt_waiting, &m);
	if (!peer_cookie)
		return;

	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	cookie = bpf_get_socket_cookie(ctx);
	if (peer && may_block(tcp_of(peer->listener)))
		why = REFUSE_BLOCKING;
	else if (excluded(bpf_get_netns_cookie(ctx), SIDE_PASSIVE, &t))
		why = REFUSE_EXCLUDED;
	else if (is_foreign(tp))
		why = REFUSE_FOREIGN;
	else if (peer)
		why = insert(ctx, tp, 0, SIDE_PASSIVE, &cookie, &t, peer, peer_cookie);
	if (why != REFUSE_NONE || !peer) {
		refused(why);
		bpf_map_delete_elem(&shunt_socks, &peer_cookie);
		bpf_map_delete_elem(&shunt_conns, &peer_cookie);
		return;
	}
	peer->peer_sk = (u64)tp;
	peer->across = bpf_get_netns_cookie(ctx) != peer->netns;
	/* The cookie publishes the pair: it must be the last word. */
	__sync_val_compare_and_swap(&peer->peer_cookie, 0, cookie);
	tap_joined(peer);
	s = stats();
	if (s)
		count(&s->joined, 1);
}

static __always_inline void join_established(struct bpf_sock_ops *ctx, enum side side)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	if (!sk || !tp)
		return;
	if (side == SIDE_ACTIVE)
		join_active(ctx, tp);
	else
		join_passive(ctx, tp);
}

/*
 * A bulk sender that is on the stack fills its send buffer (some MiB) before it has to
 * wait, and is woken long before its peer has consumed that much: the stack
 * would never run empty, and G1 would keep a bulk stream there for good. With
 * a send buffer of SPILL_SNDBUF the stack runs empty soon after the queue does.
 * Only joined bulk senders are touched, and none whose owner chose a size.
 */
static __always_inline void keep_spill_short(struct bpf_sock_ops *ctx, struct conn *own)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	int bytes = SPILL_SNDBUF;

	if (!tp || own->small_sndbuf)
		return;
	own->small_sndbuf = 1;
	if (BPF_CORE_READ_BITFIELD(sock_of(tp), sk_userlocks) & SOCK_SNDBUF_LOCK)
		return;
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)))
		fault(FAULT_SNDBUF);
}

/*
 * The first acknowledged byte proves that the accepting end is established. If
 * it has not come to the pairing by then, the note that this end followed was
 * for a stranger with the same addresses. Nothing was redirected yet.
 */
static __always_inline void give_up_waiting(struct bpf_sock_ops *ctx, u64 cookie, struct conn *own)
{
	no_callbacks(ctx, own, OUR_FLAGS);
	bpf_map_delete_elem(&shunt_waiting, &own->tuple);
	bpf_map_delete_elem(&shunt_socks, &cookie);
	bpf_map_delete_elem(&shunt_conns, &cookie);
	refused(REFUSE_REMOTE);
}

/* An ACK came in: the stack is in use. */
static __always_inline void on_ack(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_socket_cookie(ctx), peer_cookie;
	struct conn *own = bpf_map_lookup_elem(&shunt_conns, &cookie), *peer;

	if (!own)
		return;
	if (!own->peer_cookie)
		return give_up_waiting(ctx, cookie, own);
	if (own->spilled_msgs || own->stack_bytes > BULK)
		keep_spill_short(ctx, own);
	if (!own->leaving)
		return;
	peer_cookie = own->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	if (!peer)
		return;
	try_leave(peer_cookie, peer, own);
	if (try_leave(cookie, own, peer))
		no_callbacks(ctx, own, STACK_FLAGS);
}

/* A segment is about to be sent. Its receiver leaves first if it can: on some
 * kernels FIONREAD is wrong for a socket that is in the map. */
static __always_inline void on_segment(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_socket_cookie(ctx), peer_cookie;
	struct conn *own = bpf_map_lookup_elem(&shunt_conns, &cookie), *peer;

	if (!own || !own->leaving)
		return;
	peer_cookie = own->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	if (peer)
		try_leave(peer_cookie, peer, own);
}

static __always_inline void on_state(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_socket_cookie(ctx), peer_cookie;
	struct conn *own, *peer;

	own = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!own)
		return;
	peer_cookie = own->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	switch (ctx->args[1]) {
	case BPF_TCP_CLOSE:
		if (!peer_cookie) {
			bpf_map_delete_elem(&shunt_waiting, &own->tuple);
			refused(REFUSE_CLOSED);
		}
		/* After close() the kernel has taken the socket out. After a
		 * reset it is still in, and only plain TCP reports the error
		 * once; unread bytes come first, though. */
		if (!queued(tcp_of(own->sk)) && (!peer || quiet(peer, own, tcp_of(own->sk))))
			bpf_map_delete_elem(&shunt_socks, &cookie);
		tap_closed(own);
		close_account(cookie, own);
		break;
	case BPF_TCP_FIN_WAIT1:
		/*
		 * shutdown(WR) or close(): what comes now must be in the
		 * stack's queue, where close() looks for unread bytes (G6).
		 * And the FIN's ACK wakes a blocked reader: in the map, that
		 * would reach its caller as EAGAIN (G4). This runs in the
		 * call itself, before there is anything to acknowledge.
		 */
		if (!peer)
			break;
		start_leaving(own, peer, own->released ? LEAVE_CLOSE : LEAVE_SHUTDOWN);
		try_leave(cookie, own, peer);
		break;
	}
}

/* A socket that was disconnected keeps its cookie. What its old peer redirected
 * must not be read from the new one. */
static __always_inline void forget(struct bpf_sock_ops *ctx)
{
	u64 cookie = cookie_given(ctx);
	struct conn *old;

	if (!cookie) /* nearly all: it never was in the map */
		return;
	bpf_map_delete_elem(&shunt_socks, &cookie);
	old = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (old)
		close_account(cookie, old);
}

SEC("sockops")
int join(struct bpf_sock_ops *ctx)
{
	if (ctx->family != AF_INET && ctx->family != AF_INET6)
		return 1;
	/* ctx->reply stays as it is: it belongs to whoever set it. */
	switch (ctx->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		if (!ctx->is_fullsock)
			note_syn(ctx);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		forget(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		join_established(ctx, SIDE_ACTIVE);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		join_established(ctx, SIDE_PASSIVE);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		on_ack(ctx);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		on_segment(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx);
		break;
	}
	return 1;
}

#endif
