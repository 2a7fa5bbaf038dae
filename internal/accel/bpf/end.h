/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * G6: TCP answers close() on a socket with unread bytes with RST, not FIN.
 * close() looks only at the stack's queue, so for bytes in the redirect queue
 * the two programs here do it: one notes the close, the other changes the
 * segment on its way out.
 */
#ifndef SHUNT_ACCEL_END_H
#define SHUNT_ACCEL_END_H

#include "pair.h"

#define NEXT -1 /* TCX_NEXT, and TC_ACT_UNSPEC: on to the next program */
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPPROTO_TCP 6
#define TCP_FLAGS_OFFSET 12 /* data offset and flags, 16 bits */
#define TCP_FIN 0x0001
#define TCP_RST 0x0004
#define TCP_CSUM_OFFSET 16

SEC("cgroup/sock_release")
int released(struct bpf_sock *ctx)
{
	u64 cookie = bpf_get_socket_cookie(ctx), peer_cookie;
	struct conn *c = bpf_map_lookup_elem(&shunt_conns, &cookie), *peer;

	if (!c)
		return 1;
	c->released = 1;
	/* First no more into the queue, then a look at it. */
	peer_cookie = c->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	if (peer)
		start_leaving(c, peer, LEAVE_CLOSE);
	c->unread = queued(tcp_of(c->sk)) > 0;
	return 1;
}

/* Offset of the TCP header from the network header; 0 if it is not TCP.
 * The kernel's own TCP sends no IPv6 extension headers unless a program asked
 * for them; such a segment keeps its FIN. */
static __always_inline u32 tcp_header(struct __sk_buff *skb)
{
	u8 first, proto;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(skb, 0, &first, 1, BPF_HDR_START_NET) ||
		    bpf_skb_load_bytes_relative(skb, 9, &proto, 1, BPF_HDR_START_NET))
			return 0;
		return proto == IPPROTO_TCP ? (first & 15) * 4 : 0;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes_relative(skb, 6, &proto, 1, BPF_HDR_START_NET))
			return 0;
		return proto == IPPROTO_TCP ? 40 : 0;
	}
	return 0;
}

/* G5: the receiver of this FIN reads with splice, which would take it for the
 * end although redirected bytes wait: it gets an error instead. */
static __always_inline int peer_stuck(struct conn *c)
{
	u64 peer_cookie = c->peer_cookie;
	struct conn *peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);

	return peer && peer->splicing && is_socket(tcp_of(peer->sk), peer_cookie) && queued(tcp_of(peer->sk));
}

SEC("tcx/egress")
int reset(struct __sk_buff *skb)
{
	u32 tcp = tcp_header(skb), off;
	u16 flags, rst;
	struct stats *s;
	struct conn *c;
	u64 cookie;

	if (!tcp || bpf_skb_load_bytes_relative(skb, tcp + TCP_FLAGS_OFFSET, &flags,
						sizeof(flags), BPF_HDR_START_NET))
		return NEXT;
	if (!(flags & bpf_htons(TCP_FIN)))
		return NEXT;
	cookie = bpf_get_socket_cookie(skb);
	c = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!c || (!c->unread && !peer_stuck(c)))
		return NEXT;
	/* Once: a FIN sent again must find a closed port and be answered. */
	c->unread = 0;

	rst = (flags & ~bpf_htons(TCP_FIN)) | bpf_htons(TCP_RST);
	off = ETH_HLEN + tcp;
	if (bpf_l4_csum_replace(skb, off + TCP_CSUM_OFFSET, flags, rst, sizeof(rst)) ||
	    bpf_skb_store_bytes(skb, off + TCP_FLAGS_OFFSET, &rst, sizeof(rst), 0)) {
		fault(FAULT_RESET);
		return NEXT;
	}
	s = stats();
	if (s)
		count(&s->resets, 1);
	return NEXT;
}

#endif
