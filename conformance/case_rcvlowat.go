// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var rcvlowat = Case{
	Name: "rcvlowat", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "SO_RCVLOWAT: readable only from so many bytes on",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("SO_RCVLOWAT", s.option(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1000))
		e.Say("client writes", c.write(500))
		c.drained()
		e.Say("server polls", s.idle2(e))
		e.Say("client writes", c.write(500))
		e.Say("server polls", s.events(unix.POLLIN))
		e.Say("server reads", s.read(1000))
		e.Say("SO_RCVLOWAT", s.option(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1))
		e.Say("client writes", c.write(10))
		e.Say("server reads", s.read(10))
	},
}
