// SPDX-License-Identifier: Apache-2.0

// Package accel is the plane that carries local TCP from socket to socket.
//
// Its kernel half (bpf/) pairs the two ends of a local connection in a sockops
// program while the connection is established, proves by their sequence numbers
// that they belong together, and puts both into a SOCKHASH under their socket
// cookies. An sk_msg program then decides for each message whether it may go
// straight to the peer's queue or must take the stack. bpf/accel.c lists the
// programs, bpf/maps.h the state, docs/accel.md the guarantees.
//
// This half loads, pins, reads and removes them. The pinned maps, programs and
// links are the state: the process that made them may be killed at any time.
package accel

// clang-19 is the pinned compiler: CI regenerates the objects and compares them byte for byte.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package accel -type conn -type stats -type tuple -type guard_key -type guard_state -type event -type event_kind -type workload -type tap_control -type tap_event -type tap_lost -type tap_reader -type tap_kind -type route -type refusal -type leave -type fault -type side -type selection -type dimension -type drained bpf bpf/accel.c -- -O2 -g -mcpu=v3 -Wall -Werror -I../../bpf -I/usr/include/x86_64-linux-gnu
