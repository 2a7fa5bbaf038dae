// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The accel plane: local TCP from socket to socket.
 *
 *	join      sockops: pairs the two ends of a local connection, if select.h says so
 *	redirect  sk_msg: sends a message to the peer's queue, or to the stack
 *	receive   sock_recv_length: calls received, which an upgrade can replace
 *	received  learns who reads with recv, and how much
 *	spliced   tcp_rcv_space_adjust, or spliced_entry, fentry/tcp_splice_read: who reads with splice
 *	stuck     run by user space: has that reader redirected bytes?
 *	released  cgroup/sock_release: notes a close with unread bytes
 *	reset     tc egress: turns that socket's FIN into the RST that TCP sends
 *	drain     run by user space: takes a pair back to plain TCP
 */
#include "pair.h"
#include "join.h"
#include "redirect.h"
#include "splice.h"
#include "end.h"
#include "lifecycle.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
