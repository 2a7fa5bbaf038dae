/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * G5: splice(2) looks only at the stack's queue. A reader that was seen in recv
 * and turns to splice leaves for plain TCP with its pair, and its workload is
 * remembered, so that its next connections do not join. If redirected bytes wait
 * for it just then, it would never see them: user space resets it.
 */
#ifndef SHUNT_ACCEL_SPLICE_H
#define SHUNT_ACCEL_SPLICE_H

#include "pair.h"

static __always_inline void exclude(struct conn *c)
{
	u64 now = bpf_ktime_get_ns();
	struct workload w;

	workload_of(c->netns, c->side, &c->tuple, &w);
	if (bpf_map_update_elem(&shunt_exclusions, &w, &now, BPF_ANY))
		fault(FAULT_EXCLUDE);
	if (trust_workload)
		bpf_map_delete_elem(&shunt_readers, &w);
}

/* Runs in the reader's call, before it reads or when it found nothing. */
static __always_inline void on_splice(struct sock *sk)
{
	struct tcp_sock *tp = tcp_of((u64)sk);
	u64 cookie = sk->__sk_common.skc_cookie.counter, peer_cookie;
	struct conn *c = bpf_map_lookup_elem(&shunt_conns, &cookie), *peer;
	struct event *event;

	if (!c || c->splicing)
		return;
	c->splicing = 1;
	exclude(c);
	peer_cookie = c->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	if (peer)
		start_leaving(c, peer, LEAVE_SPLICE);
	/* Both before the look: see quiet(). */
	if (c->reported || (!queued(tp) && (!peer || quiet(peer, c, tp))))
		return;
	event = bpf_ringbuf_reserve(&shunt_events, sizeof(*event), 0);
	if (!event) {
		fault(FAULT_EVENT);
		c->splicing = 0; /* the next splice asks again */
		return;
	}
	c->reported = 1;
	*event = (struct event){.kind = EVENT_STUCK, .netns = c->netns, .cookie = cookie};
	bpf_ringbuf_submit(event, 0);
}

/* Where tracing programs are allowed: others pay nothing. */
SEC("fentry/tcp_splice_read")
int spliced_entry(u64 *ctx)
{
	struct sock *sk = KERNEL_PTR(socket, ctx[0])->sk;

	if (sk && has_psock(KERNEL_PTR(sock, sk)))
		on_splice(KERNEL_PTR(sock, sk));
	return 0;
}

#define X86_SPLICE 275

/*
 * Elsewhere: splice and recvmsg both pass here, so the system call tells. One
 * through io_uring has another number; it shows by having read nothing, twice,
 * where something waits: recvmsg comes here only with bytes that it has read.
 */
static __always_inline int read_nothing(struct sock *sk)
{
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	struct conn *c = bpf_map_lookup_elem(&shunt_conns, &cookie);
	u32 copied_seq = tcp_of((u64)sk)->copied_seq;
	int nothing;

	if (!c)
		return 0;
	nothing = c->seen_seq == copied_seq;
	c->seen_seq = copied_seq;
	return nothing;
}

SEC("raw_tracepoint/tcp_rcv_space_adjust")
int spliced(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = KERNEL_PTR(sock, ctx->args[0]);
	struct task_struct *task;
	struct pt_regs *regs;

	if (!has_psock(sk))
		return 0;
	if (queued(tcp_of((u64)sk)) && read_nothing(sk)) {
		on_splice(sk);
		return 0;
	}
	task = bpf_get_current_task_btf();
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	if (bpf_core_field_exists(regs->orig_ax) && KERNEL_PTR(pt_regs, regs)->orig_ax == X86_SPLICE)
		on_splice(sk);
	return 0;
}

/* Answers user space: 1 if the socket with the cookie args[0] reads with splice
 * and redirected bytes wait for it. */
SEC("raw_tracepoint")
int stuck(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cookie = ctx->args[0];
	struct conn *c = bpf_map_lookup_elem(&shunt_conns, &cookie);

	if (!c)
		return 0;
	if (c->splicing && is_socket(tcp_of(c->sk), cookie) && queued(tcp_of(c->sk)))
		return 1;
	c->reported = 0; /* it may turn to splice again */
	return 0;
}

#endif
