// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var fionreadMixed = Case{
	Name: "fionread-mixed", Guarantee: "G5", Modes: nonBlocking,
	Doc: "FIONREAD with bytes of both paths unread",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		e.Say("SO_ZEROCOPY", c.option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)) // takes the stack
		e.Say("client writes", c.write(1000))
		c.drained()
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(1000))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
		e.Say("server reads", s.read(1000))
		e.Say("FIONREAD", s.ask(unix.SIOCINQ))
	},
}
