// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var closePartlyRead = Case{
	Name: "close-partly-read", Guarantee: "G6", Modes: allModes, Control: nonBlocking,
	Doc: "close when one byte of a message is unread is RST",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		e.Say("server reads", s.read(999))
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
