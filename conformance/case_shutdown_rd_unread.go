// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var shutdownRDUnread = Case{
	Name: "shutdown-rd-unread", Guarantee: "G6", Modes: allModes,
	Doc: "shutdown(RD) with bytes unread: they are read, then EOF",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(100))
		s.arrived(100)
		e.Say("shutdown", s.shutdown(unix.SHUT_RD))
		e.Say("server reads", s.read(1000))
		e.Say("server polls", s.events(unix.POLLIN|unix.POLLRDHUP))
	},
}
