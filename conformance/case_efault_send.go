// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var efaultSend = Case{
	Name: "efault-send", Guarantee: "G5", Modes: allModes,
	Doc: "a write from a bad buffer is EFAULT and sends nothing",
	Run: func(e *Env) {
		c, s := e.settled()
		n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(c.fd), 8, 1000, unix.MSG_NOSIGNAL, 0, 0)
		e.Say("client writes from nowhere", fmt.Sprintf("%d %s", int(n), errname(errno)))
		e.Say("client writes", c.write(100))
		e.Say("server reads", s.read(100))
	},
}
