// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
)

var spillAndBack = Case{
	Name: "spill-and-back", Guarantee: "G1", Modes: nonBlocking,
	Doc: "past the bound of the short path and back, with uneven reads: in order",
	Run: func(e *Env) {
		c, s := e.settled()
		for i := range 4 {
			n, _ := c.fill(50000, 20<<20)
			half := n/2 + 1000*i
			e.Say("server reads a half", s.read(half) == fmt.Sprintf("%d bytes", half))
			c.fill(7000, 1<<20)
			left := int(c.sent - s.got)
			e.Say("server reads the rest", s.read(left) == fmt.Sprintf("%d bytes", left))
			ping(c, s)
			ping(c, s)
		}
	},
}
