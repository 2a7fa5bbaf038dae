// SPDX-License-Identifier: Apache-2.0

package conformance

var earlyBytes = Case{
	Name: "early-bytes", Guarantee: "G1", Modes: allModes,
	Doc: "bytes sent before accept, after it, and when the reader was seen: in order",
	Run: func(e *Env) {
		l := e.listen(16, nil)
		c := e.dial(l, nil)
		c.stream = 1
		e.Say("client writes", c.write(3000))
		s := l.accept()
		s.incoming, s.stream, c.incoming = 1, 2, 2
		e.Say("client writes", c.write(3000))
		e.Say("server reads a part", s.read(1000))
		e.Say("client writes", c.write(3000))
		e.Say("server writes", s.write(1000))
		e.Say("client reads", c.read(1000))
		e.Say("client writes", c.write(3000))
		e.Say("server reads", s.read(11000))
		settle(c, s)
		e.Say("client writes", c.write(3000))
		e.Say("server reads", s.read(3000))
	},
}
