// SPDX-License-Identifier: Apache-2.0

package conformance

var epollShortSpilled = Case{
	Name: "edge-short-read-full", Guarantee: "G5", Modes: Edge,
	Doc: "the same after the sender was held back and stopped",
	Run: func(e *Env) {
		c, s := e.settled()
		n, stopped := c.fill(50000, 12<<20)
		e.Say("stopped by", stopped)
		e.Say("server reads", s.trusting(n))
	},
}
