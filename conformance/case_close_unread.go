// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var closeUnread = Case{
	Name: "close-unread", Guarantee: "G6", Modes: allModes, Control: nonBlocking,
	Doc: "close with bytes unread is RST",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
