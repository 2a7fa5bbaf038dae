// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var fionreadJoined = Case{
	Name: "fionread-joined", Guarantee: "G5", Modes: allModes,
	Doc: "FIONREAD of a connection in use",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		for range 3 {
			e.Say("client writes", c.write(1000))
		}
		s.arrived(3000)
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(1400))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(1600))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
	},
}
