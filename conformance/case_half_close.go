// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var halfClose = Case{
	Name: "half-close", Guarantee: "G4", Modes: allModes, Control: Blocking,
	Doc: "thousands of connections: send, shutdown(WR), read the reply to its end",
	Run: func(e *Env) {
		rounds := min(e.Connections, 2000)
		sizes := []int{1, 100, 5000, 40000}
		l := e.listen(128, nil)
		base := e.streams + 1000
		server := e.async(func() string {
			seen := tally{}
			for i := range rounds {
				s := l.accept()
				s.stream, s.incoming = base+uint64(2*i+1), base+uint64(2*i)
				n := sizes[i%len(sizes)]
				ok := s.read(everything) == fmt.Sprintf("%d bytes, EOF", n) && s.write(2*n) == fmt.Sprintf("%d bytes", 2*n)
				seen[fmt.Sprintf("a request and its answer: %v", ok)]++
				s.close()
			}
			return seen.String()
		})
		seen := tally{}
		for i := range rounds {
			c := e.dial(l, nil)
			c.stream, c.incoming = base+uint64(2*i), base+uint64(2*i+1)
			n := sizes[i%len(sizes)]
			c.write(n)
			c.shutdown(unix.SHUT_WR)
			r := c.read(everything)
			if r == fmt.Sprintf("%d bytes, EOF", 2*n) {
				r = "the whole reply"
			}
			seen[r]++
			c.close()
		}
		e.Say(fmt.Sprintf("%d connections", rounds), seen)
		e.Say("the server", server.wait())
	},
}
