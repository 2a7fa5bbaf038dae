// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var closeUnreadBoth = Case{
	Name: "close-unread-both", Guarantee: "G6", Modes: allModes,
	Doc: "close with bytes unread, while the peer has some to read",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("server writes", s.write(500))
		c.arrived(500)
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
