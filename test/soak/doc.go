// SPDX-License-Identifier: Apache-2.0

// Package soak runs mixed random traffic over accelerated connections and
// checks every byte: sizes from 1 B to 1 MiB, both directions at once, half-closes,
// resets, slow readers and SIGKILL of either process, on loopback and
// between namespaces. A kill may cut a stream short; nothing may change, reorder
// or silently end one.
//
//	make test PKG=./test/soak                                                    # 20 s of it
//	sudo -E env PATH=$PATH go test ./test/soak -v -soak.for 30m -timeout 40m     # the long run
//	… -soak.seed N                                                               # the same choices again
//
// Traffic stops several times; each time the kernel has to be as empty as it was.
package soak
