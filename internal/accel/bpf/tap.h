/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Sight for whoever asks: `shunt tap` sees each message, `shunt accel -f` each
 * join and leave. Nobody asks most of the time, and then this is one load.
 *
 * Only reads: neither the message nor the decision about it is ever changed.
 * What cannot be written down is counted.
 */
#ifndef SHUNT_ACCEL_TAP_H
#define SHUNT_ACCEL_TAP_H

#include "sock.h"

/* Bytes of payload in one record. A page fragment, of which the kernel makes
 * messages, has at most as many. */
#define TAP_CHUNK 32768
/* The kernel's scatterlist has 19 elements, or up to 47 where it was built so. */
#define TAP_CHUNKS 64
/* Bytes that wait for the reader before it is woken: of 16 MiB. */
#define TAP_WAKE (2 << 20)

enum tap_reader { TAP_MESSAGES, TAP_PAIRS, TAP_READERS };

enum tap_kind { TAP_MESSAGE, TAP_JOIN, TAP_LEAVE, TAP_CLOSE };

/* One for each kind of reader. Off when `until` is 0. */
struct tap_control {
	u64 until;	 /* ktime; the reader, as long as it lives, moves it on */
	u32 owner;	 /* PID of the reader, for the next one to ask after */
	u32 snaplen;	 /* payload bytes kept of each record */
	u32 host[2][4];	 /* as in struct tuple; those given must be ends */
	u16 port[2];
	u8 hosts;	 /* how many of each are given */
	u8 ports;
	u16 pad;
};

/* What could not be written. */
struct tap_lost {
	u64 records;	 /* ring buffer full, or nobody's */
	u64 bytes;	 /* of messages, in them */
	u64 unread;	 /* payload that could not be read */
};

/* A record: of a message or of a part of one, or of what became of a pair. */
struct tap_event {
	u64 time;	 /* ktime, ns */
	u64 cookie;
	u64 peer_cookie; /* 0 until paired */
	u64 netns;
	u64 peer_netns;	 /* 0 until paired */
	u64 offset;	 /* bytes this socket had sent before this record's, by any path;
			  * those by the stack modulo 2^32 */
	u64 consumed;	 /* bytes its application had received */
	u64 cgroup;	 /* ID of the socket's cgroup */
	u64 peer_cgroup;
	u64 inode;	 /* of the socket's file, 0 if it has none */
	u64 peer_inode;
	struct tuple tuple;
	u32 snd_nxt;	 /* at establishment */
	u32 rcv_nxt;
	u32 size;	 /* bytes this record stands for */
	u32 captured;	 /* bytes that follow */
	u32 message;	 /* size of the whole message */
	u32 tgid;	 /* of a message: who sends it */
	u8 comm[16];
	u8 kind;	 /* enum tap_kind */
	u8 route;	 /* enum route; of TAP_LEAVE: enum leave */
	u8 side;
	u8 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TAP_READERS);
	__type(key, u32);
	__type(value, struct tap_control);
} shunt_tap SEC(".maps");

/* The reader brings its own ring buffer (16 MiB for messages: what a busy
 * connection sends in some 5 ms; 256 KiB for pairs: 900 events), so an instance
 * that nobody looks at has none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TAP_READERS);
	__type(key, u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 4096);
	});
} shunt_taps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAP_READERS);
	__type(key, u32);
	__type(value, struct tap_lost);
} shunt_tap_lost SEC(".maps");

const enum tap_reader *btf_tap_reader __attribute__((unused));
const enum tap_kind *btf_tap_kind __attribute__((unused));
const struct tap_event *btf_tap_event __attribute__((unused));

/* More of the kernel's types, as far as they are looked at here. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct inode___tap {
	unsigned long i_ino;
};

struct file___tap {
	struct inode___tap *f_inode;
};

struct kernfs_node___tap {
	u64 id;
};

struct cgroup___tap {
	struct kernfs_node___tap *kn;
};

struct sock_cgroup_data___tap {
	struct cgroup___tap *cgroup;
};

struct sock___tap {
	struct sock_cgroup_data___tap sk_cgrp_data;
};

struct task_struct___tap {
	int tgid;
	char comm[16];
};

struct scatterlist___tap {
	unsigned int length;
};

struct sk_msg_sg___tap {
	u32 start;
	u32 end;
	struct scatterlist___tap data[19];
};

struct sk_msg___tap {
	struct sk_msg_sg___tap sg;
};

#pragma clang attribute pop

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;

static __always_inline struct tap_control *tap_asked(u32 reader)
{
	struct tap_control *ctl = bpf_map_lookup_elem(&shunt_tap, &reader);

	return ctl && *(volatile u64 *)&ctl->until ? ctl : 0;
}

static __always_inline void tap_lost(u32 reader, u64 records, u64 bytes, u64 unread)
{
	struct tap_lost *lost = bpf_map_lookup_elem(&shunt_tap_lost, &reader);

	if (!lost)
		return;
	if (records)
		count(&lost->records, records);
	if (bytes)
		count(&lost->bytes, bytes);
	if (unread)
		count(&lost->unread, unread);
}

/* A reader that died does not move the deadline on: off by itself. */
static __always_inline int tap_expired(struct tap_control *ctl, u64 now)
{
	if (now < ctl->until)
		return 0;
	ctl->until = 0;
	return 1;
}

static __always_inline int tap_is_end(const struct tuple *t, const u32 addr[4])
{
	return (t->laddr[0] == addr[0] && t->laddr[1] == addr[1] &&
		t->laddr[2] == addr[2] && t->laddr[3] == addr[3]) ||
	       (t->raddr[0] == addr[0] && t->raddr[1] == addr[1] &&
		t->raddr[2] == addr[2] && t->raddr[3] == addr[3]);
}

/* The part of the filter that the tuple decides: a busy connection that nobody
 * asked for must not fill the ring buffer. */
static __always_inline int tap_wanted(const struct tap_control *ctl, const struct tuple *t)
{
	if (ctl->ports > 0 && t->lport != ctl->port[0] && t->rport != ctl->port[0])
		return 0;
	if (ctl->ports > 1 && t->lport != ctl->port[1] && t->rport != ctl->port[1])
		return 0;
	if (ctl->hosts > 0 && !tap_is_end(t, ctl->host[0]))
		return 0;
	if (ctl->hosts > 1 && !tap_is_end(t, ctl->host[1]))
		return 0;
	return 1;
}

static __always_inline u64 tap_inode(struct tcp_sock *tp)
{
	struct socket *s = sock_of(tp)->sk_socket;
	struct file *f = s ? KERNEL_PTR(socket, s)->file : 0;
	void *inode = f ? KERNEL_PTR(file___tap, f)->f_inode : 0;

	return inode ? KERNEL_PTR(inode___tap, inode)->i_ino : 0;
}

static __always_inline u64 tap_cgroup(struct tcp_sock *tp)
{
	void *cgroup = KERNEL_PTR(sock___tap, tp)->sk_cgrp_data.cgroup;
	void *kn = cgroup ? KERNEL_PTR(cgroup___tap, cgroup)->kn : 0;

	return kn ? KERNEL_PTR(kernfs_node___tap, kn)->id : 0;
}

/* All but what differs from record to record of one message. `e` is memory of
 * a ring buffer, which may hold anything. */
static __always_inline void tap_describe(struct tap_event *e, struct conn *own, u64 now)
{
	struct tcp_sock *tp = tcp_of(own->sk), *peer = tcp_of(own->peer_sk);
	u64 task = bpf_get_current_task(), peer_cookie = own->peer_cookie;
	struct conn *pc;

	e->time = now;
	e->cookie = sock_of(tp)->__sk_common.skc_cookie.counter;
	e->peer_cookie = peer_cookie;
	e->netns = own->netns;
	e->peer_netns = 0;
	e->consumed = own->consumed;
	e->cgroup = tap_cgroup(tp);
	e->inode = tap_inode(tp);
	e->peer_cgroup = 0;
	e->peer_inode = 0;
	if (peer_cookie) {
		pc = bpf_map_lookup_elem(&shunt_conns, &peer_cookie);
		if (pc)
			e->peer_netns = pc->netns;
		if (is_socket(peer, peer_cookie)) {
			e->peer_cgroup = tap_cgroup(peer);
			e->peer_inode = tap_inode(peer);
		}
	}
	__builtin_memcpy(&e->tuple, &own->tuple, sizeof(e->tuple));
	e->snd_nxt = own->snd_nxt;
	e->rcv_nxt = own->rcv_nxt;
	e->side = own->side;
	e->tgid = KERNEL_PTR(task_struct___tap, task)->tgid;
	if (bpf_probe_read_kernel(e->comm, sizeof(e->comm),
				  (void *)(task + bpf_core_field_offset(struct task_struct___tap, comm))))
		e->comm[0] = 0;
}

/* A walk through one message. */
struct tap_walk {
	struct sk_msg_md *msg;
	struct conn *own;
	void *ring;
	u64 data;	 /* address of the scatterlist */
	u64 start;	 /* of the message in the sender's stream */
	u64 now;
	u32 size;
	u32 pos;	 /* what was written down so far */
	u32 left;	 /* of the element at hand */
	u32 elem;	 /* the next one */
	u32 snaplen;
	u32 route;
};

/* One record of the next `size` bytes, with room for `room` of them, which must
 * be a constant. */
static __always_inline int tap_write(struct tap_walk *w, void *payload, u32 size, u32 len, const u32 room)
{
	struct tap_event *e = bpf_ringbuf_reserve(w->ring, sizeof(*e) + room, 0);

	if (!e)
		return 0;
	tap_describe(e, w->own, w->now);
	e->kind = TAP_MESSAGE;
	e->route = w->route;
	e->offset = w->start + w->pos;
	e->size = size;
	e->message = w->size;
	if (len > room)
		len = room;
	barrier_var(len); /* or the compiler keeps the bound to itself */
	if (len > room)
		len = room;
	if (len && bpf_probe_read_kernel(e + 1, len, payload)) {
		tap_lost(TAP_MESSAGES, 0, 0, len);
		len = 0;
	}
	e->captured = len;
	/* The reader looks by itself, some 50 times a second. To wake it costs the
	 * sender more than all of the above, so only where that would be too late. */
	bpf_ringbuf_submit(e, bpf_ringbuf_query(w->ring, BPF_RB_AVAIL_DATA) < TAP_WAKE ?
			      BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
	return 1;
}

/*
 * Each element of the message is read where it lies. A pull within one element
 * changes nothing but the data pointers, which the kernel does not use after
 * this program; only the page of a file that is being sent, which kernels
 * before 6.5 put into messages, is copied by it.
 */
static long tap_chunk(u64 i, struct tap_walk *w)
{
	const u32 stride = bpf_core_type_size(struct scatterlist___tap);
	u32 pos = w->pos, left = w->left, size, len, elems;
	void *payload = 0;
	int ok;

	if (pos >= w->size)
		return 1;
	if (!left) {
		left = KERNEL_PTR(scatterlist___tap, w->data + (u64)w->elem * stride)->length;
		/* As the kernel counts: one element of the array stays unused. */
		elems = bpf_core_field_size(((struct sk_msg_sg___tap *)0)->data) / stride - 1;
		w->elem = w->elem + 1 == elems ? 0 : w->elem + 1;
		if (!left || left > w->size - pos)
			return 1;
	}
	size = left < TAP_CHUNK ? left : TAP_CHUNK;
	len = size < w->snaplen ? size : w->snaplen;
	if (len) {
		if (bpf_msg_pull_data(w->msg, pos, pos + size, 0)) {
			tap_lost(TAP_MESSAGES, 0, 0, len);
			len = 0;
		} else {
			payload = w->msg->data;
		}
	}
	if (len <= 512) /* three sizes, not to fill the buffer with room */
		ok = tap_write(w, payload, size, len, 512);
	else if (len <= 4096)
		ok = tap_write(w, payload, size, len, 4096);
	else
		ok = tap_write(w, payload, size, len, TAP_CHUNK);
	if (!ok)
		tap_lost(TAP_MESSAGES, 1, size, 0);
	w->left = left - size;
	w->pos = pos + size;
	return 0;
}

static __noinline int tap_message(struct sk_msg_md *msg, struct conn *own, struct tap_control *ctl, u32 route)
{
	u32 reader = TAP_MESSAGES;
	struct tap_walk w = {};
	u64 sg;

	if (!own || !ctl)
		return 0;
	w.now = bpf_ktime_get_ns();
	if (tap_expired(ctl, w.now) || !tap_wanted(ctl, &own->tuple))
		return 0;
	w.msg = msg;
	w.own = own;
	w.size = msg->size;
	w.route = route;
	w.snaplen = ctl->snaplen;
	/* What the stack took is in its own sequence numbers. Not in stack_bytes:
	 * a message that found room only in part comes again with the rest. */
	w.start = own->redirected_bytes + (u32)(tcp_of(own->sk)->write_seq - own->snd_nxt);
	if (route == ROUTE_REDIRECT) /* counted already */
		w.start -= w.size;
	w.ring = bpf_map_lookup_elem(&shunt_taps, &reader);
	if (!w.ring) {
		tap_lost(TAP_MESSAGES, 1, w.size, 0);
		return 0;
	}
	sg = (u64)bpf_cast_to_kern_ctx(msg);
	w.elem = KERNEL_PTR(sk_msg___tap, sg)->sg.start;
	w.data = sg + bpf_core_field_offset(struct sk_msg___tap, sg.data);
	bpf_loop(TAP_CHUNKS, tap_chunk, &w, 0);
	if (w.pos < w.size)
		tap_lost(TAP_MESSAGES, 1, w.size - w.pos, 0);
	return 0;
}

/* Called for each message, after the decision. */
static __always_inline void tap(struct sk_msg_md *msg, struct conn *own, enum route route)
{
	struct tap_control *ctl = tap_asked(TAP_MESSAGES);

	if (ctl)
		tap_message(msg, own, ctl, route);
}

static __noinline int tap_tell(struct conn *own, struct tap_control *ctl, u32 reader, u32 kind, u32 why)
{
	u64 now = bpf_ktime_get_ns();
	struct tap_event *e;
	void *ring;

	if (!own || !ctl || tap_expired(ctl, now) || !tap_wanted(ctl, &own->tuple))
		return 0;
	ring = bpf_map_lookup_elem(&shunt_taps, &reader);
	e = ring ? bpf_ringbuf_reserve(ring, sizeof(*e), 0) : 0;
	if (!e) {
		tap_lost(reader, 1, 0, 0);
		return 0;
	}
	tap_describe(e, own, now);
	e->kind = kind;
	e->route = why;
	e->offset = own->redirected_bytes + (u32)(tcp_of(own->sk)->write_seq - own->snd_nxt);
	e->size = 0;
	e->captured = 0;
	e->message = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* `own` is the connecting end. */
static __always_inline void tap_joined(struct conn *own)
{
	struct tap_control *ctl = tap_asked(TAP_PAIRS);

	if (ctl)
		tap_tell(own, ctl, TAP_PAIRS, TAP_JOIN, 0);
}

static __always_inline void tap_left(struct conn *own, enum leave why)
{
	struct tap_control *ctl = tap_asked(TAP_PAIRS);

	if (ctl)
		tap_tell(own, ctl, TAP_PAIRS, TAP_LEAVE, why);
}

/* The entry goes: both readers may forget the socket. */
static __always_inline void tap_closed(struct conn *own)
{
	struct tap_control *ctl = tap_asked(TAP_PAIRS);

	if (ctl)
		tap_tell(own, ctl, TAP_PAIRS, TAP_CLOSE, 0);
	ctl = tap_asked(TAP_MESSAGES);
	if (ctl)
		tap_tell(own, ctl, TAP_MESSAGES, TAP_CLOSE, 0);
}

#endif
