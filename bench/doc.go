// SPDX-License-Identifier: Apache-2.0

// Package bench compares socket paths side by side: plain TCP, accelerated TCP,
// a unix socket, and the unguarded "redirect everything" control.
//
// Every sample starts one server and one client process (this same binary, see
// [PeerMain]) inside a cgroup made for that sample, on fixed CPUs, in the
// network namespaces of the cell's place. The paths are measured in turn,
// A B C D A B C D, and compared only within their round, so that a machine that
// slows down does so for all of them.
package bench
