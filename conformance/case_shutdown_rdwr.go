// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var shutdownRDWR = Case{
	Name: "shutdown-rdwr", Guarantee: "G6", Modes: allModes,
	Doc: "shutdown(RDWR) after bytes: the peer reads them, both sides see the end",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(3000))
		e.Say("shutdown", c.shutdown(unix.SHUT_RDWR))
		e.Say("client reads", c.read(100))
		e.Say("client writes", c.write(100))
		e.Say("server reads", s.read(everything))
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLHUP))
	},
}
