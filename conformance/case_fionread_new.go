// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var fionreadNew = Case{
	Name: "fionread-new", Guarantee: "G5", Modes: allModes,
	Doc: "FIONREAD before the reader was ever seen",
	Run: func(e *Env) {
		c, s := e.pair()
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(400))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(600))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
	},
}
