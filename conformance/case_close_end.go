// SPDX-License-Identifier: Apache-2.0

package conformance

var closeEnd = Case{
	Name: "close", Guarantee: "G6", Modes: allModes,
	Doc: "close after bytes: EOF after the last byte",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("server writes", s.write(20000))
		e.Say("server closes", s.close())
		e.ended(c)
	},
}
