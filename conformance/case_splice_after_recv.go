// SPDX-License-Identifier: Apache-2.0

package conformance

var spliceAfterRecv = Case{
	Name: "splice-after-recv", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "a reader that turns from recv to splice",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(20000))
		s.arrived(20000)
		e.Say("server splices", s.splice(20000))
		e.Say("client writes", c.write(3000))
		e.Say("server splices", s.splice(3000))
		e.Say("client writes", c.write(3000))
		e.Say("server reads", s.read(3000))
	},
}
