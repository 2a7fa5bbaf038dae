// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

var sendmmsgRecvmmsg = Case{
	Name: "sendmmsg-recvmmsg", Guarantee: "G5", Modes: allModes,
	Doc: "sendmmsg of four messages and recvmmsg",
	Run: func(e *Env) {
		type mmsghdr struct {
			hdr unix.Msghdr
			n   uint32
		}
		call := func(number uintptr, fd int, parts [][]byte, flags int) string {
			msgs := make([]mmsghdr, len(parts))
			for i := range parts {
				iov := &unix.Iovec{Base: &parts[i][0]}
				iov.SetLen(len(parts[i]))
				msgs[i].hdr.Iov = iov
				msgs[i].hdr.SetIovlen(1)
			}
			n, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), uintptr(flags), 0, 0)
			if errno != 0 {
				return errname(errno)
			}
			out := fmt.Sprintf("%d messages:", n)
			for i := range int(n) {
				out += fmt.Sprintf(" %d", msgs[i].n)
			}
			return out
		}
		c, s := e.settled()
		e.Say("sendmmsg", call(unix.SYS_SENDMMSG, c.fd, [][]byte{c.next(10), c.next(2000), c.next(300), c.next(4)}, unix.MSG_NOSIGNAL))
		s.arrived(2314)
		parts := [][]byte{make([]byte, 7), make([]byte, 1000), make([]byte, 1307)}
		e.Say("recvmmsg", call(unix.SYS_RECVMMSG, s.fd, parts, 0))
		e.Say("buffers", s.match(slices.Concat(parts...)))
	},
}
