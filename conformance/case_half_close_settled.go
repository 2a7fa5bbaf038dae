// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var halfCloseSettled = Case{
	Name: "half-close-settled", Guarantee: "G4", Modes: allModes,
	Doc: "the same at the end of a connection that was in use, the reader waiting already",
	Run: func(e *Env) {
		seen := tally{}
		l := e.listen(128, nil)
		for range min(e.Connections/10, 200) {
			c, s := l.pair()
			settle(c, s)
			r := e.async(func() string { return c.read(everything) })
			c.write(3000)
			c.shutdown(unix.SHUT_WR)
			got := s.read(everything) + "; " + s.write(3000) + "; "
			s.close()
			seen[got+r.wait()]++
			c.close()
		}
		e.Say("the end", seen)
	},
}
