// SPDX-License-Identifier: Apache-2.0

package conformance

var smallStream = Case{
	Name: "small-writes", Guarantee: "G7", Modes: allModes,
	Doc: "a stream of writes of 4 KiB, then requests and replies again: whatever path, in order",
	Run: func(e *Env) {
		c, s := e.settled()
		for range 3 {
			e.transfer(c, s, 8<<20, 4096)
			e.transfer(s, c, 2<<20, 512)
			for range 10 {
				ping(c, s)
			}
		}
	},
}
