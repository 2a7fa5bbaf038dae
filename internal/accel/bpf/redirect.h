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
	struct guard_key key = {};
	u8 *state, asked = GUARD_ASKED;
	struct event *event;
	long err;

	if (!dev || !net)
		return 0;
	key.netns = KERNEL_PTR(net, net)->net_cookie;
	key.ifindex = KERNEL_PTR(net_device, dev)->ifindex;
	state = bpf_map_lookup_elem(&shunt_guards, &key);
	if (state)
		return *state == GUARD_ON;
	err = bpf_map_update_elem(&shunt_guards, &key, &asked, BPF_NOEXIST);
	if (err) {
		if (err != -EEXIST) /* another CPU asked just now */
			fault(FAULT_EVENT);
		return 0;
	}
	event = bpf_ringbuf_reserve(&shunt_events, sizeof(*event), 0);
	if (!event) {
		/* Nobody will answer: let the next message ask again. */
		bpf_map_delete_elem(&shunt_guards, &key);
		fault(FAULT_EVENT);
		return 0;
	}
	*event = (struct event){.kind = EVENT_GUARD, .ifindex = key.ifindex, .netns = key.netns};
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

/* Messages in one direction after which it is looked at. */
#define RUN 64
/* A run that took longer is no stream: the stack would gather nothing. */
#define RUN_NS (RUN * 50000ULL)

/*
 * G7: a stream of small writes is faster through the stack, which gathers them,
 * where reader and writer share a CPU; on two, and for larger writes, the short
 * path is faster. Sizes are measured with bench accel --streams.
 */
static __always_inline int slow_stream(struct conn *own, u32 size)
{
	u32 small = own->across ? 6 << 10 : 12 << 10;
	u64 peer_cookie = own->peer_cookie, now;
	struct conn *pc;
	int slow;

	if (own->consumed != own->run_consumed) { /* the other direction was used */
		own->run_consumed = own->consumed;
		own->run_msgs = 0;
		own->slow_runs = 0;
	}
	if (!own->run_msgs) {
		own->run_start = bpf_ktime_get_ns();
		own->run_bytes = 0;
	}
	own->run_msgs++;
	own->run_bytes += size < small * RUN ? size : small * RUN;
	if (own->run_msgs < RUN)
		return own->slow_runs >= 2;
	now = bpf_ktime_get_ns();
	own->run_msgs = 0;
	pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	slow = own->run_bytes < small * RUN && now - own->run_start < RUN_NS &&
	       pc && pc->reader_cpu == bpf_get_smp_processor_id();
	own->slow_runs = slow ? own->slow_runs + 1 : 0;
	return own->slow_runs >= 2;
}

/* The pair goes back to plain TCP, for good. */
static __always_inline enum route leave(struct conn *own, enum leave why)
{
	u64 peer_cookie = own->peer_cookie;
	struct conn *pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);

	if (pc)
		start_leaving(own, pc, why);
	return ROUTE_LEAVING;
}

static __always_inline enum route choose(struct conn *own, struct tcp_sock *tp, u32 size)
{
	u64 peer_cookie = own->peer_cookie;
	enum leave special;
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
	if (mode == NO_FILE && require_reader && !trust_workload)
		return ROUTE_UNACCEPTED;
	if (!accept_blocking && (mode == BLOCKING || blocking_mode(tp) == BLOCKING))
		return leave(own, LEAVE_BLOCKING);
	if (tp->inet_conn.icsk_ulp_ops || peer->inet_conn.icsk_ulp_ops)
		return leave(own, LEAVE_ULP);
	special = special_reader(peer);
	if (!special)
		special = special_writer(tp);
	if (special)
		return leave(own, special);
	/* Only when nothing waits: then the reader is out of the map before the first
	 * byte comes through the stack, see on_segment(). A blocked reader would
	 * see the leaving as EAGAIN. */
	if (!accept_blocking && slow_stream(own, size) && !queued(peer))
		return leave(own, LEAVE_STREAM);
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
	struct conn *c;
	u64 cookie;

	/* All others pay for this look and no more. */
	if (!has_psock(sk) || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	c = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!c)
		return 0;
	if (!c->proven) {
		c->proven = 1;
		if (trust_workload)
			remember_reader(c);
	}
	if (c->splicing)
		c->splicing = 0;
	c->reader_cpu = bpf_get_smp_processor_id();
	if (ret > 0)
		count(&c->consumed, ret);
	return 0;
}

#endif
