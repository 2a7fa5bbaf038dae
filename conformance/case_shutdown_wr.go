// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var shutdownWR = Case{
	Name: "shutdown-wr", Guarantee: "G6", Modes: allModes,
	Doc: "bytes, then shutdown(WR): EOF after the last byte; a reply after it",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(20000))
		e.Say("shutdown", c.shutdown(unix.SHUT_WR))
		e.Say("server reads", s.read(everything))
		e.Say("server polls", s.events(unix.POLLIN|unix.POLLRDHUP))
		e.Say("server writes", s.write(20000))
		e.Say("server closes", s.close())
		e.ended(c)
	},
}
