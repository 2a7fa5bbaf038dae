// SPDX-License-Identifier: Apache-2.0

package conformance

var fork = Case{
	Name: "fork", Guarantee: "G6", Modes: allModes,
	Doc: "a child that inherits the socket uses it; the end comes with its last holder",
	Run: func(e *Env) {
		c, s := e.settled()
		pid := e.spawn("echo", s.fd)
		e.Say("server closes", s.close())
		for range 20 {
			e.Say("client writes", c.write(5000))
			c.incoming, c.got = c.stream, c.sent-5000
			e.Say("client reads its echo", c.read(5000))
		}
		e.Say("client polls", c.idle2(e))
		e.kill(pid)
		e.ended(c)
	},
}
