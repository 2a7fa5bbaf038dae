// SPDX-License-Identifier: Apache-2.0

package conformance

import "golang.org/x/sys/unix"

// The last case: there is no agent afterwards.
var agentGone = Case{
	Name: "agent-gone", Guarantee: "G9", Modes: Level,
	Doc: "shunt's process goes away: connections in use, with bytes unread, and new ones go on",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(20000))
		s.arrived(20000)
		e.stopAgent()
		e.Say("server reads", s.read(20000))
		e.transfer(c, s, 8<<20, 64<<10)
		e.transfer(s, c, 8<<20, 10000)
		n, stopped := s.fill(64<<10, tooMuch)
		e.Say("held back by", stopped)
		e.Say("all of it arrives", c.read(n) == moved(n, nil))
		c2, s2 := e.settled()
		e.transfer(c2, s2, 1<<20, 64<<10)
		e.Say("client writes", c2.write(100))
		s2.arrived(100)
		e.Say("server closes with bytes unread", s2.close())
		e.Say("client polls", c2.events(unix.POLLRDHUP))
		e.ended(c2)
		e.Say("client closes", c.close())
		e.ended(s)
	},
}
