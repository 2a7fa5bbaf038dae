// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var killUnread = Case{
	Name: "kill-unread", Guarantee: "G6", Modes: allModes, Control: nonBlocking,
	Doc: "SIGKILL of a process with bytes unread is RST",
	Run: func(e *Env) {
		c, s := e.settled()
		pid := e.spawn("hold", s.fd)
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		s.close()
		e.Say("client polls", c.idle2(e))
		e.kill(pid)
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
