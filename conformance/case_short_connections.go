// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
)

var shortConnections = Case{
	Name: "short-connections", Guarantee: "G6", Modes: Blocking | Level,
	Doc: "thousands of connections: a request, a reply, the end from either side",
	Run: func(e *Env) {
		l := e.listen(128, nil)
		seen := tally{}
		for i := range e.Connections {
			c, s := l.pair()
			first, second := c, s
			if i%2 == 1 {
				first, second = s, c
			}
			r := ""
			for range 2 {
				r += fmt.Sprint(c.write(200), s.read(200), s.write(300), c.read(300))
			}
			r += first.close()
			r += second.read(1)
			second.close()
			seen[r]++
		}
		e.Say(fmt.Sprintf("%d connections", e.Connections), seen)
	},
}
