// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var closeAfterShutdown = Case{
	Name: "close-unread-after-shutdown", Guarantee: "G6", Modes: allModes,
	Doc: "shutdown(WR), then close with bytes unread",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		e.Say("shutdown", s.shutdown(unix.SHUT_WR))
		e.Say("client reads", c.read(everything))
		e.Say("server closes", s.close())
		c.poll(0, 4*e.quiet) // the RST, if there is one
		e.ended(c)
	},
}
