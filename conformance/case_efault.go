// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var efault = Case{
	Name: "efault", Guarantee: "G5", Modes: allModes,
	Doc: "a bad buffer is EFAULT and costs no byte",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), 8, 1000, 0, 0, 0)
		e.Say("server reads to nowhere", errname(errno))
		e.Say("server reads", s.read(1000))
		e.Say("client writes", c.write(100))
		e.Say("server reads", s.read(100))
	},
}
