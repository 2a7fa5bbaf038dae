/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* G9: what it takes to upgrade an instance and to take it out under traffic. */
#ifndef SHUNT_ACCEL_LIFECYCLE_H
#define SHUNT_ACCEL_LIFECYCLE_H

#include "pair.h"

/* A link to a raw tracepoint cannot be given another program, and attaching a
 * second before the first goes would count bytes twice, after it lose some: both
 * break quiet(). So what is attached only calls what stands in this slot, and an
 * upgrade replaces that at once. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} shunt_received SEC(".maps");

SEC("raw_tracepoint/sock_recv_length")
int receive(struct bpf_raw_tracepoint_args *ctx)
{
	bpf_tail_call(ctx, &shunt_received, 0);
	return 0;
}

/* What drain() returns. */
enum drained { DRAIN_GONE, DRAIN_QUEUED, DRAIN_UNPAIRED };

const enum drained *btf_drained __attribute__((unused));

/* Run by user space with the cookie of a joined socket as its packet: the pair
 * stops redirecting, and the socket leaves the map if nothing is queued at it or
 * on its way to it. A program, because only that may read the sockets; of this
 * type, because that may take sockets out of a map. */
SEC("tc")
int drain(struct __sk_buff *skb)
{
	u64 cookie, peer_cookie;
	struct conn *own, *peer;

	if (bpf_skb_load_bytes(skb, 0, &cookie, sizeof(cookie)))
		return DRAIN_UNPAIRED;
	own = bpf_map_lookup_elem(&shunt_conns, &cookie);
	if (!own || own->gone)
		return DRAIN_GONE;
	peer_cookie = own->peer_cookie;
	peer = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
	if (!peer && !peer_cookie) /* its accepting end is on its way */
		return DRAIN_UNPAIRED;
	if (!peer) { /* closed: nothing more will be redirected to this one */
		if (queued(tcp_of(own->sk)))
			return DRAIN_QUEUED;
		bpf_map_delete_elem(&shunt_socks, &cookie);
		return DRAIN_GONE;
	}
	start_leaving(own, peer, LEAVE_UNLOAD);
	return try_leave(cookie, own, peer) ? DRAIN_GONE : DRAIN_QUEUED;
}

#endif
