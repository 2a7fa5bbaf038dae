// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

var trunc = Case{
	Name: "trunc", Guarantee: "G5", Modes: allModes,
	Doc: "MSG_TRUNC throws bytes away without copying them",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		drop := func(buf unsafe.Pointer) {
			n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(buf), 400, unix.MSG_TRUNC, 0, 0)
			if errno != 0 {
				e.Say("server drops", errname(errno))
				return
			}
			s.got += int64(n)
			e.Say("server drops", n)
		}
		b := make([]byte, 400)
		drop(unsafe.Pointer(&b[0]))
		e.Say("the buffer is as it was", bytes.Equal(b, make([]byte, 400)))
		drop(nil)
		e.Say("server reads", s.read(int(c.sent-s.got)))
	},
}
