/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Decides for each message: to the peer's queue, or through the stack. */
#ifndef SHUNT_ACCEL_REDIRECT_H
#define SHUNT_ACCEL_REDIRECT_H

#include "pair.h"

/* G6: is the reset guard on the device that `tp` sends through? The first
 * question about a device asks user space to put it there. */
static __always_inline int guarded(struct tcp_sock *tp)
{
	struct net *net = sock_of(tp)->__sk_common.skc_net.net;
	struct dst_entry *dst = sock_of(tp)->sk_dst_cache;
	struct net_device *dev = dst ? KERNEL_PTR(dst_entry, dst)->dev : 0;
	struct guard_key key = {}, *event;
	u8 *state, asked = GUARD_ASKED;

	if (!dev || !net)
		return 0;
	key.netns = KERNEL_PTR(net, net)->net_cookie;
	key.ifindex = KERNEL_PTR(net_device, dev)->ifindex;
	state = bpf_map_lookup_elem(&shunt_guards, &key);
	if (state)
		return *state == GUARD_ON;
	if (bpf_map_update_elem(&shunt_guards, &key, &asked, BPF_NOEXIST))
		return 0;
	event = bpf_ringbuf_reserve(&shunt_events, sizeof(*event), 0);
	if (!event) {
		/* Nobody will answer: let the next message ask again. */
		bpf_map_delete_elem(&shunt_guards, &key);
		fault(FAULT_EVENT);
		return 0;
	}
	*event = key;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Asked until it holds, once per connection and direction. */
static __always_inline enum route make_ready(struct conn *own, struct tcp_sock *tp,
					     struct tcp_sock *peer)
{
	u64 peer_cookie = own->peer_cookie;
	struct conn *pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);

	if (!pc)
		return ROUTE_CLOSING;
	/* The pair is written from the accepting end, into a map entry that may
	 * have been freed and used again meanwhile: both ends must say so. */
	if (!is_socket(tp, pc->peer_cookie))
		return ROUTE_UNPAIRED;
	if (require_reader && !pc->proven)
		return ROUTE_READER;
	if (require_guard && !guarded(peer))
		return ROUTE_GUARD;
	own->ready = 1;
	return ROUTE_REDIRECT;
}

static __always_inline enum route choose(struct conn *own, struct tcp_sock *tp, u32 size)
{
	u64 peer_cookie = own->peer_cookie;
	enum blocking mode;
	struct tcp_sock *peer;
	struct sock *psk;
	enum route route;
	u32 waiting;

	if (!peer_cookie)
		return ROUTE_UNPAIRED;
	if (own->leaving)
		return ROUTE_LEAVING;
	if (sock_of(tp)->sk_shutdown & SEND_SHUTDOWN)
		return ROUTE_SHUTDOWN;

	peer = tcp_of(own->peer_sk);
	psk = sock_of(peer);
	if (!is_socket(peer, peer_cookie) || psk->sk_shutdown & RCV_SHUTDOWN ||
	    psk->__sk_common.skc_state != BPF_TCP_ESTABLISHED)
		return ROUTE_CLOSING;

	/* G4, G5: how will the peer read? */
	mode = blocking_mode(peer);
	if (mode == NO_FILE && require_reader)
		return ROUTE_UNACCEPTED;
	if (!accept_blocking && (mode == BLOCKING || blocking_mode(tp) == BLOCKING)) {
		struct conn *pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);

		if (pc)
			start_leaving(own, pc, LEAVE_BLOCKING);
		return ROUTE_LEAVING;
	}
	if (psk->sk_rcvlowat > 1)
		return ROUTE_LOWAT;
	if (tp->inet_conn.icsk_ulp_ops || peer->inet_conn.icsk_ulp_ops)
		return ROUTE_ULP;
	if (sock_of(tp)->__sk_common.skc_flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
		return ROUTE_ZEROCOPY;
	if (!own->ready) {
		route = make_ready(own, tp, peer);
		if (route != ROUTE_REDIRECT)
			return route;
	}

	/* G1: the peer's queue is read before its stack bytes, so there must
	 * be none: its application has consumed all I ever wrote to the stack. */
	if (peer->copied_seq != tp->write_seq)
		return ROUTE_ORDER;

	/* G3. A single message may pass the bound: the queue was empty. A message
	 * costs the kernel 1 KiB besides its bytes, charged to nobody. */
	waiting = queued(peer);
	if (!waiting)
		own->burst = 0;
	else if (++own->burst > max_queue / 1024)
		return ROUTE_SPILL;
	if (waiting && (waiting >= max_queue || size > max_queue - waiting))
		return ROUTE_SPILL;
	if (memory_pressure(peer))
		return ROUTE_PRESSURE;
	/* A blocking reader with MSG_WAITALL may have read all stack bytes and
	 * wait for more inside tcp_recvmsg, where it would never see the queue.
	 * Its recv has not returned: the bytes are not in `consumed` yet. */
	if (accept_blocking && mode == BLOCKING && !waiting) {
		struct conn *pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);

		if (!pc || !quiet(own, pc, peer))
			return ROUTE_ORDER;
	}
	return ROUTE_REDIRECT;
}

static __always_inline enum route send(struct sk_msg_md *msg, struct conn *own, struct tcp_sock *tp)
{
	enum route route = choose(own, tp, msg->size);
	u64 promised;

	if (route != ROUTE_REDIRECT)
		return route;
	/* Promise first, look at leaving second: see quiet(). The barrier keeps
	 * the atomic one that returns a value, which orders memory everywhere. */
	promised = __sync_fetch_and_add(&own->redirected_bytes, msg->size);
	asm volatile("" : "+r"(promised));
	if (*(volatile u32 *)&own->leaving)
		route = ROUTE_LEAVING;
	else if (bpf_msg_redirect_hash(msg, &shunt_socks, &own->peer_cookie, BPF_F_INGRESS) != SK_PASS)
		route = ROUTE_CLOSING;
	if (route != ROUTE_REDIRECT)
		__sync_fetch_and_add(&own->redirected_bytes, -(u64)msg->size);
	return route;
}

SEC("sk_msg")
int redirect(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *tp = tcp_of((u64)sk);
	u32 size = msg->size;
	struct stats *s;
	struct conn *own;
	enum route route;
	u64 cookie;

	cookie = sock_of(tp)->__sk_common.skc_cookie.counter;
	own = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!own) /* closed by the peer, or not joined after all */
		return SK_PASS;
	route = send(msg, own, tp);
	own->route = route;
	tap(msg, own, route);
	if (route == ROUTE_REDIRECT) {
		own->redirected_msgs++;
		return SK_PASS;
	}
	if (route == ROUTE_SPILL) {
		own->spilled_msgs++;
		own->spilled_bytes += size;
	} else {
		own->stack_msgs++;
		own->stack_bytes += size;
	}
	s = stats();
	if (s && route < ROUTE_MAX) {
		count(&s->messages[route], 1);
		count(&s->bytes[route], size);
	}
	/* Whatever the helper said: a drop here would be an error to the
	 * sender, the stack is always a way. */
	return SK_PASS;
}

/* The kernel's own record of each receive call. A reader that uses splice(2)
 * never shows up here, and would never see a redirected byte. */
SEC("raw_tracepoint/sock_recv_length")
int received(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = KERNEL_PTR(sock, ctx->args[0]);
	int ret = (int)ctx->args[1], flags = (int)ctx->args[2];
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	struct conn *c;

	/* Sockets that nobody asked for a cookie have none: not ours. */
	if (!cookie || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
		return 0;
	c = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!c)
		return 0;
	if (!c->proven)
		c->proven = 1;
	if (ret > 0)
		count(&c->consumed, ret);
	return 0;
}

#endif
