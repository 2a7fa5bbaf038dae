// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var peekMessages = Case{
	Name: "peek-messages", Guarantee: "G5", Modes: allModes,
	Doc: "MSG_PEEK over several messages sees as much as recv would",
	Run: func(e *Env) {
		c, s := e.settled()
		for range 3 {
			c.write(100)
		}
		c.drained()
		s.arrived(300)
		b := make([]byte, 1000)
		m, _, err := unix.Recvfrom(s.fd, b, unix.MSG_PEEK)
		e.Say("server peeks", moved(m, err))
		m, _, err = unix.Recvfrom(s.fd, b, 0)
		e.Say("server reads", moved(m, err)+", "+s.match(b[:max(0, m)]))
	},
}
