// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var shutdownRD = Case{
	Name: "shutdown-rd", Guarantee: "G6", Modes: allModes,
	Doc: "shutdown(RD): EOF, and what comes later is read all the same",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("shutdown", s.shutdown(unix.SHUT_RD))
		e.Say("server reads", s.read(100))
		e.Say("client writes", c.write(100))
		s.arrived(100)
		e.Say("server reads", s.read(100))
		e.Say("server writes", s.write(100))
		e.Say("client reads", c.read(100))
		e.Say("server closes", s.close())
		e.ended(c)
	},
}
