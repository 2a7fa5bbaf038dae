// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

var reconnect = Case{
	Name: "reconnect", Guarantee: "G2", Modes: allModes,
	Doc: "a socket that is disconnected and connects to another peer",
	Run: func(e *Env) {
		c, s := e.settled()
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
		e.Say("disconnect", errname(errno))
		e.Say("the old server reads", s.read(100))
		l := e.listen(16, nil)
		c.connect(l.addr)
		c.sent, c.got = 0, 0
		_, t := couple(c, l.accept())
		for range 5 {
			e.Say("client writes", c.write(1000))
			e.Say("the new server reads", t.read(1000))
			e.Say("the new server writes", t.write(1000))
			e.Say("client reads", c.read(1000))
		}
	},
}
