/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The state of the accel plane. Go reads the same layouts through bpf2go.
 */
#ifndef SHUNT_ACCEL_MAPS_H
#define SHUNT_ACCEL_MAPS_H

#include "kernel.h"

/* Set by the loader before the programs are loaded. */
volatile const u32 max_queue = 4 << 20; /* G3: bytes queued at one receiver */
volatile const u8 accept_blocking = 0;	/* accept: G4 */
volatile const u8 require_reader = 1;	/* cleared by accept: G5 */
/* On kernels that miscount FIONREAD: what came through the stack is not seen by
 * it, so bytes go to a reader as soon as its workload was seen in recv. */
volatile const u8 trust_workload = 0;
volatile const u8 require_guard = 1;	/* cleared by accept: G6 */

/* Sockets in the table at once, both ends counted. Each costs 16 B of bucket
 * here, about 250 B in conns and a psock (about 700 B) in the kernel. */
#define MAX_SOCKETS 131072

/* Why a socket was not joined. */
enum refusal {
	REFUSE_NONE,
	REFUSE_REMOTE,	 /* the peer is on another machine or not selected */
	REFUSE_BLOCKING, /* G4: blocking socket, or accepted from a blocking listener */
	REFUSE_PROOF,	 /* G2: sequence numbers of the two ends do not match */
	REFUSE_COLLISION,/* another pair uses this address tuple now */
	REFUSE_FULL,	 /* a table is full */
	REFUSE_FASTOPEN, /* the accepting end was established by the SYN itself */
	REFUSE_FOREIGN,	 /* MPTCP, another sockmap or ULP owns the socket */
	REFUSE_EXCLUDED, /* G5: one end's workload was seen in splice(2) */
	REFUSE_CLOSED,	 /* the connecting end was gone before the accepting end was there */
	REFUSE_UNSELECTED, /* no end is selected, or one is excluded */
	REFUSE_MAX,
};

/* Why a message took the stack. REDIRECT: it did not. */
enum route {
	ROUTE_REDIRECT,
	ROUTE_UNPAIRED,	/* the other end has not joined (yet) */
	ROUTE_UNACCEPTED,/* the peer's socket is still in the accept queue */
	ROUTE_READER,	/* G5: the peer was not yet seen reading with recv */
	ROUTE_GUARD,	/* G6: the peer's device has no reset guard yet */
	ROUTE_ORDER,	/* G1: stack bytes are not yet consumed */
	ROUTE_SPILL,	/* G3: the receiver's queue is at its bound */
	ROUTE_PRESSURE,	/* G3: TCP memory pressure */
	ROUTE_LEAVING,	/* the pair is on its way out of the map */
	ROUTE_SHUTDOWN,	/* own write side is shut: the stack answers EPIPE */
	ROUTE_CLOSING,	/* the peer does not read any more */
	ROUTE_MAX,
};

/* Why a pair left the map before its end. */
enum leave {
	LEAVE_NONE,
	LEAVE_BLOCKING,	/* G4: an end turned to blocking mode */
	LEAVE_SHUTDOWN,	/* G4, G6: half-closed */
	LEAVE_CLOSE,	/* closed: nothing is redirected any more */
	LEAVE_STREAM,	/* G7: small writes in one direction, which the stack gathers */
	LEAVE_SPLICE,	/* G5: splice(2) never sees redirected bytes */
	LEAVE_LOWAT,	/* G5: SO_RCVLOWAT */
	LEAVE_INQ,	/* G5: TCP_INQ */
	LEAVE_TIMESTAMP,/* G5: SO_TIMESTAMP*: only the stack has time stamps */
	LEAVE_MMAP,	/* G5: TCP_ZEROCOPY_RECEIVE takes pages of the stack's segments */
	LEAVE_ZEROCOPY,	/* G5: SO_ZEROCOPY: only the stack reports completions */
	LEAVE_ULP,	/* G5: kTLS or another ULP on either end */
	LEAVE_UNLOAD,	/* the instance is being taken out */
	LEAVE_MAX,
};

/* Kernel helper calls that failed, by place. */
enum fault {
	FAULT_CONN_INSERT,
	FAULT_SOCK_INSERT,
	FAULT_SYN_INSERT,
	FAULT_PAIR_INSERT,
	FAULT_CB_FLAGS,
	FAULT_EVENT,
	FAULT_LEAVE,
	FAULT_RESET,
	FAULT_SNDBUF,
	FAULT_EXCLUDE,
	FAULT_READER,
	FAULT_MAX,
};

/* One direction's addresses as the local socket sees them. IPv4 is stored
 * IPv4-mapped, so a dual-stack listener and an IPv4 client agree. */
struct tuple {
	u32 laddr[4]; /* network order */
	u32 raddr[4];
	u64 netns;    /* netns cookie where the addresses are loopback, else 0 */
	u16 lport;    /* host order */
	u16 rport;
	u32 pad;
};

enum side { SIDE_ACTIVE = 1, SIDE_PASSIVE = 2 };

/*
 * A joined socket, keyed by its cookie. Written under the socket's lock,
 * except: consumed, proven, reader_cpu and splicing (its reader), leaving (also its peer).
 */
struct conn {
	u64 sk;		 /* address of struct sock; its cookie is the proof */
	u64 peer_sk;
	u64 peer_cookie; /* 0 until paired */
	u64 netns;	 /* netns cookie */
	u64 listener;	 /* of the accepting end, at a connecting one; its address */
	u64 born;	 /* ktime, ns */
	u64 consumed;	 /* bytes its application received, whichever way */
	u64 redirected_bytes; /* handed to redirect, whether arrived or not */
	u64 redirected_msgs;
	u64 stack_bytes;
	u64 stack_msgs;
	u64 spilled_bytes;
	u64 spilled_msgs;
	u64 run_start;	 /* see slow_stream() */
	u64 run_consumed;
	struct tuple tuple;
	u32 snd_nxt;	 /* at establishment, for the proof */
	u32 rcv_nxt;
	u32 copied_seq;	 /* at establishment */
	u32 burst;	 /* messages redirected since the peer's queue was empty */
	u32 leaving;	 /* enum leave */
	u32 other_flags; /* sockops callbacks that others had switched on */
	u8 side;
	u8 proven;	 /* was seen in recv, with or without result */
	u8 ready;	 /* peer proven and guarded: not asked again */
	u8 route;	 /* enum route of the last message */
	u8 unread;	 /* closed with redirected bytes unread */
	u8 gone;	 /* left the map */
	u8 small_sndbuf; /* see keep_spill_short() */
	u8 released;	 /* close() was called */
	u32 run_msgs;
	u32 run_bytes;
	u32 reader_cpu;	 /* where its reader was last seen */
	u32 seen_seq;	 /* its copied_seq then, see read_nothing() */
	u8 slow_runs;
	u8 across;	 /* the peer is in another network namespace */
	u8 splicing;	 /* the last read was splice(2) */
	u8 reported;	 /* user space was asked to look at it */
};

struct stats {
	u64 seen;	/* connections with an end here; each is joined or refused */
	u64 joined;	/* pairs */
	u64 messages[ROUTE_MAX]; /* ROUTE_REDIRECT: of closed connections only, */
	u64 bytes[ROUTE_MAX];	 /* to keep shared counters off the short path */
	u64 refused[REFUSE_MAX];
	u64 left[LEAVE_MAX];
	u64 resets;	/* FIN turned to RST: closed with bytes unread */
	u64 faults[FAULT_MAX];
};

/* A device in a namespace, which has the reset guard or shall have it. */
struct guard_key {
	u64 netns;
	u32 ifindex;
	u32 pad;
};

enum guard_state { GUARD_ASKED, GUARD_ON, GUARD_REFUSED };

/* Asks user space for what only it can do. */
enum event_kind {
	EVENT_GUARD,	/* put the reset guard on a device */
	EVENT_STUCK,	/* see whether a splice reader has redirected bytes: reset it */
};

struct event {
	u32 kind; /* enum event_kind */
	u32 ifindex;
	u64 netns;
	u64 cookie; /* EVENT_STUCK */
};

/* What a splice reader does there: connections of one side to one port. */
struct workload {
	u64 netns; /* of the reader */
	u16 port;  /* the server's, host order */
	u8 side;   /* enum side of the reader */
	u8 pad[5];
};

/* The sockets, by cookie, which no other socket ever has: a redirect reaches
 * the socket that was paired or nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, u64);
	__type(value, u64);
} shunt_socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, u64);
	__type(value, struct conn);
} shunt_conns SEC(".maps");

enum syn { SYN_SEEN = 1, SYN_FASTOPEN };

/* What is known when the SYN arrives. */
struct note {
	u64 generation; /* of the selection that judged it */
	u64 listener;	/* address of struct sock */
	u8 syn;		/* enum syn */
	u8 selected;	/* the listening end is */
	u8 excluded;
	u8 pad[5];
};

/* A SYN reached a selected local listener: its tuple, as the client sees it.
 * An entry lives for one handshake, so the size bounds handshakes in flight;
 * one that is pushed out costs that connection its short path. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct tuple);
	__type(value, struct note);
} shunt_syns SEC(".maps");

/* Connecting ends that wait for their accepting end: tuple to cookie, 0 for
 * one that was refused, so that its other end is not counted again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct tuple);
	__type(value, u64);
} shunt_waiting SEC(".maps");

/* Devices (per namespace) that joined sockets send through. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct guard_key);
	__type(value, u8);
} shunt_guards SEC(".maps");

/* Workloads that use splice(2), with the time (ktime, ns) of the last sight. One
 * that is pushed out is seen again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct workload);
	__type(value, u64);
} shunt_exclusions SEC(".maps");

/* Workloads that were seen in recv; used with trust_workload. One that is pushed
 * out is seen again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct workload);
	__type(value, u8);
} shunt_readers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} shunt_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stats);
} shunt_stats SEC(".maps");

/* Puts the types that Go shares into the object's BTF. */
const enum refusal *btf_refusal __attribute__((unused));
const enum route *btf_route __attribute__((unused));
const enum leave *btf_leave __attribute__((unused));
const enum fault *btf_fault __attribute__((unused));
const enum guard_state *btf_guard_state __attribute__((unused));
const enum side *btf_side __attribute__((unused));
const enum event_kind *btf_event_kind __attribute__((unused));
const struct event *btf_event __attribute__((unused));

static __always_inline struct stats *stats(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&shunt_stats, &zero);
}

/* sockops runs in process and in softirq context on one CPU: the add must be
 * one instruction, a torn read-modify-write would lose counts. */
static __always_inline void count(u64 *counter, u64 by)
{
	__sync_fetch_and_add(counter, by);
}

static __always_inline void seen(void)
{
	struct stats *s = stats();

	if (s)
		count(&s->seen, 1);
}

static __always_inline void fault(enum fault place)
{
	struct stats *s = stats();

	if (s)
		count(&s->faults[place], 1);
}

static __always_inline void refused(enum refusal why)
{
	struct stats *s = stats();

	if (s)
		count(&s->refused[why], 1);
}

#endif
