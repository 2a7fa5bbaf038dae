/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which connections: those of which one end matches a selector, and no end an
 * excluding one. Each selector is one bit. Each dimension gives the bits of the
 * selectors that match there; their intersection is what an end matches.
 *
 * Server port and addresses belong to the connection, so the first end that is
 * asked can already say no. The listening end is judged when the SYN arrives and
 * tells the connecting end through the note, which then decides for both.
 */
#ifndef SHUNT_ACCEL_SELECT_H
#define SHUNT_ACCEL_SELECT_H

#include "pair.h"

/* 0: an instance in a cgroup of its own, where everything is selected. */
volatile const u8 selective = 0;

enum dimension { DIM_PORT, DIM_ADDRESS, DIM_NETNS, DIM_UID, DIM_CGROUP, DIM_MAX };

/* Every entry of the tables belongs to one generation, and only this says which
 * one counts. A reload builds a generation beside, then puts it here with one
 * update of the outer map: nothing is judged by parts of both. */
struct selection {
	u64 generation;	     /* never 0, never used twice */
	u64 select;
	u64 exclude;
	u64 named[DIM_MAX];  /* selectors that say something about the dimension */
};

struct select_key {
	u64 generation;
	u64 value;	/* port, netns cookie, uid or cgroup id */
	u32 dimension;
	u32 pad;
};

/* The generation is a part of the prefix. Addresses as in struct tuple. */
struct select_prefix {
	u32 bits;
	u32 generation[2];
	u32 addr[4];
};

struct selection_slot {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct selection);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, u32);
	__array(values, struct selection_slot);
} shunt_selection SEC(".maps");

/* Two generations of all ports and as many cgroups again. Memory is taken for
 * the entries that are there, about 64 B each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct select_key);
	__type(value, u64);
} shunt_select SEC(".maps");

/* Two generations of 8192 prefixes, about 80 B each when there. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct select_prefix);
	__type(value, u64);
} shunt_select_addr SEC(".maps");

/* Levels of cgroups looked at, from the socket's own up. */
#define CGROUP_DEPTH 16

/* For the object's BTF: an inner map's definition does not bring it in. */
const struct selection *btf_selection __attribute__((unused));
const enum dimension *btf_dimension __attribute__((unused));

/* The listener that a SYN is for: sockops shows only the embryonic socket. */
static __always_inline struct sock *listener_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock_ops_kern *kern = bpf_cast_to_kern_ctx(ctx);

	return KERNEL_PTR(sock, KERNEL_PTR(sock, kern->sk)->__sk_common.skc_listener);
}

/* 0 for a socket that nobody gave one yet. Asking the helper would give it one,
 * and every later recv on it would be looked up. */
static __always_inline u64 cookie_given(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;

	return tp ? sock_of(tp)->__sk_common.skc_cookie.counter : 0;
}

static __always_inline u64 matching(const struct selection *s, enum dimension dim, u64 value)
{
	struct select_key key = { .generation = s->generation, .value = value, .dimension = dim };
	u64 *mask = bpf_map_lookup_elem(&shunt_select, &key);

	return mask ? *mask : 0;
}

static __always_inline u64 matching_addr(const struct selection *s, const u32 addr[4])
{
	struct select_prefix key = { .bits = 64 + 128 };
	u64 *mask;

	__builtin_memcpy(key.generation, &s->generation, sizeof(key.generation));
	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	mask = bpf_map_lookup_elem(&shunt_select_addr, &key);
	return mask ? *mask : 0;
}

/* A cgroup's first member is its css, so the address of one is that of the other. */
static __always_inline struct cgroup *cgroup_of(struct cgroup_subsys_state *css)
{
	return KERNEL_PTR(cgroup, (u64)css - bpf_core_field_offset(struct cgroup, self));
}

static __always_inline u64 matching_cgroup(const struct selection *s, struct sock *sk)
{
	struct cgroup *cg = KERNEL_PTR(cgroup, sk->sk_cgrp_data.cgroup);
	u64 mask = 0;
	int i;

	for (i = 0; i < CGROUP_DEPTH; i++) {
		struct cgroup_subsys_state *parent;
		struct kernfs_node *kn = cg->kn;

		if (!kn)
			break;
		mask |= matching(s, DIM_CGROUP, KERNEL_PTR(kernfs_node, kn)->id);
		parent = cg->self.parent;
		if (!parent)
			break;
		cg = cgroup_of(parent);
	}
	return mask;
}

static __always_inline u64 matching_netns(const struct selection *s, struct sock *sk)
{
	struct net *net = sk->__sk_common.skc_net.net;

	return matching(s, DIM_NETNS, net ? KERNEL_PTR(net, net)->net_cookie : 0);
}

/*
 * Judges one end. 0: nothing that the other end could say selects this
 * connection. `t` is the end's own tuple, `port` the server's.
 */
static __always_inline int judge(struct note *end, struct sock *sk, const struct tuple *t, u16 port)
{
	u32 zero = 0;
	struct selection *s;
	void *slot;
	u64 mask;

	if (!selective)
		return end->selected = 1;
	slot = bpf_map_lookup_elem(&shunt_selection, &zero);
	s = slot ? bpf_map_lookup_elem(slot, &zero) : 0;
	if (!s)
		return 0;
	end->generation = s->generation;
	mask = s->select | s->exclude;

	if (mask & s->named[DIM_PORT])
		mask &= ~s->named[DIM_PORT] | matching(s, DIM_PORT, port);
	if (!(mask & s->select))
		return 0;
	if (mask & s->named[DIM_ADDRESS])
		mask &= ~s->named[DIM_ADDRESS] | matching_addr(s, t->laddr) | matching_addr(s, t->raddr);
	if (!(mask & s->select))
		return 0;

	if (mask & s->named[DIM_NETNS])
		mask &= ~s->named[DIM_NETNS] | matching_netns(s, sk);
	if (mask & s->named[DIM_UID])
		mask &= ~s->named[DIM_UID] | matching(s, DIM_UID, sk->sk_uid.val);
	if (mask & s->named[DIM_CGROUP])
		mask &= ~s->named[DIM_CGROUP] | matching_cgroup(s, sk);
	end->selected = (mask & s->select) != 0;
	end->excluded = (mask & s->exclude) != 0;
	return 1;
}

/* A handshake that a reload came into stays on plain TCP. */
static __always_inline int both_select(const struct note *a, const struct note *b)
{
	if (!selective)
		return 1;
	return a->generation == b->generation && (a->selected || b->selected) && !a->excluded &&
	       !b->excluded;
}

/* Why a connection is not joined of which only this end is here. */
static __always_inline enum refusal unjoined(const struct note *end)
{
	return !selective || (end->selected && !end->excluded) ? REFUSE_REMOTE : REFUSE_UNSELECTED;
}

#endif
