// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"cmp"
	"strings"
)

var killWriter = Case{
	Name: "kill-writer", Guarantee: "G6", Modes: Blocking | Level,
	Doc: "SIGKILL of a writer at any moment: what it wrote arrives, then EOF",
	Run: func(e *Env) {
		seen := tally{}
		for i := range 5 {
			c, s := e.settled()
			pid := e.spawn("source", c.fd)
			c.close()
			s.incoming, s.got = childStream, 0
			s.read(1 + i*300000)
			e.kill(pid)
			// How much it wrote is its own affair; what is there must be whole.
			r := s.read(everything)
			_, end, _ := strings.Cut(r, ", ")
			seen["the rest ends with "+cmp.Or(end, r)]++
			s.close()
		}
		e.Say("kill -9", seen)
	},
}
