// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var siocoutq = Case{
	Name: "siocoutq", Guarantee: "G5", Modes: allModes,
	Doc: "SIOCOUTQ goes to 0 without the reader's help",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		c.drained()
		e.Say("SIOCOUTQ", c.ask(unix.SIOCOUTQ))
		e.Say("server reads", s.read(1000))
		e.Say("SIOCOUTQ", c.ask(unix.SIOCOUTQ))
	},
}
