// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
)

var manyOpen = Case{
	Name: "many-open", Guarantee: "G1", Modes: Blocking | Level,
	Doc: "1,200 connections open at once, used in turn",
	Run: func(e *Env) {
		const connections = 1200
		l := e.listen(128, nil)
		var pairs [][2]*Sock
		for range connections {
			c, s := l.pair()
			pairs = append(pairs, [2]*Sock{c, s})
		}
		seen := tally{}
		for range 3 {
			for _, p := range pairs {
				seen[fmt.Sprint(p[0].write(100), p[1].read(100), p[1].write(1000), p[0].read(1000))]++
			}
		}
		e.Say("a round trip", seen)
		seen = tally{}
		for _, p := range pairs {
			p[0].close()
			seen[p[1].read(1)]++
			p[1].close()
		}
		e.Say("the end", seen)
	},
}
