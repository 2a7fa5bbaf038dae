// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The unguarded control: every established socket goes into the map, every
 * message goes straight to the socket with the mirrored tuple. It loses data
 * (half-close, splice, no back-pressure); it is here so that benchmarks can be
 * compared with it and tests can show that they are able to fail.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10

/* Addresses in network order, IPv4 as ::ffff:a.b.c.d; ports in host order. */
struct tuple {
	__u32 local_ip[4];
	__u32 remote_ip[4];
	__u32 local_port;
	__u32 remote_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, __u64);
} naive_sockets SEC(".maps");

static __always_inline void map_ipv4(__u32 ip[4], __u32 ip4)
{
	ip[2] = bpf_htonl(0xffff);
	ip[3] = ip4;
}

SEC("sockops")
int naive_insert(struct bpf_sock_ops *ops)
{
	struct tuple own = {};

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;

	if (ops->family == AF_INET) {
		map_ipv4(own.local_ip, ops->local_ip4);
		map_ipv4(own.remote_ip, ops->remote_ip4);
	} else if (ops->family == AF_INET6) {
		own.local_ip[0] = ops->local_ip6[0];
		own.local_ip[1] = ops->local_ip6[1];
		own.local_ip[2] = ops->local_ip6[2];
		own.local_ip[3] = ops->local_ip6[3];
		own.remote_ip[0] = ops->remote_ip6[0];
		own.remote_ip[1] = ops->remote_ip6[1];
		own.remote_ip[2] = ops->remote_ip6[2];
		own.remote_ip[3] = ops->remote_ip6[3];
	} else {
		return 1;
	}
	own.local_port = ops->local_port;
	own.remote_port = bpf_ntohl(ops->remote_port);

	bpf_sock_hash_update(ops, &naive_sockets, &own, BPF_ANY);
	return 1;
}

SEC("sk_msg")
int naive_redirect(struct sk_msg_md *msg)
{
	struct tuple peer = {};

	if (msg->family == AF_INET) {
		map_ipv4(peer.local_ip, msg->remote_ip4);
		map_ipv4(peer.remote_ip, msg->local_ip4);
	} else if (msg->family == AF_INET6) {
		peer.local_ip[0] = msg->remote_ip6[0];
		peer.local_ip[1] = msg->remote_ip6[1];
		peer.local_ip[2] = msg->remote_ip6[2];
		peer.local_ip[3] = msg->remote_ip6[3];
		peer.remote_ip[0] = msg->local_ip6[0];
		peer.remote_ip[1] = msg->local_ip6[1];
		peer.remote_ip[2] = msg->local_ip6[2];
		peer.remote_ip[3] = msg->local_ip6[3];
	} else {
		return SK_PASS;
	}
	peer.local_port = bpf_ntohl(msg->remote_port);
	peer.remote_port = msg->local_port;

	/* A miss returns SK_DROP; the message then takes the stack. */
	bpf_msg_redirect_hash(msg, &naive_sockets, &peer, BPF_F_INGRESS);
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
