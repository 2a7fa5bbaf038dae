// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var writeToClosed = Case{
	Name: "write-to-closed", Guarantee: "G6", Modes: allModes,
	Doc: "a peer that closed: the first write goes, RST comes, then EPIPE",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.Say("client writes", c.write(100))
		c.poll(0, e.patience)
		e.Say("client writes again", c.write(100))
		e.Say("client reads", c.read(100))
	},
}
