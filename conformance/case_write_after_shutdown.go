// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var writeAfterShutdown = Case{
	Name: "write-after-shutdown", Guarantee: "G6", Modes: allModes, Control: allModes,
	Doc: "EPIPE after shutdown(WR), the other direction goes on",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("shutdown", c.shutdown(unix.SHUT_WR))
		e.Say("client writes", c.write(100))
		e.Say("client writes again", c.write(100))
		e.Say("server reads", s.read(everything))
		e.Say("server writes", s.write(5000))
		e.Say("client reads", c.read(5000))
		e.Say("server closes", s.close())
		e.ended(c)
	},
}
