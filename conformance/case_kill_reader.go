// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"time"
)

var killReader = Case{
	Name: "kill-reader", Guarantee: "G6", Modes: Blocking | Level,
	Doc: "SIGKILL of a reader at any moment: the writer is told",
	Run: func(e *Env) {
		seen := tally{}
		for i := range 5 {
			c, s := e.settled()
			pid := e.spawn("sink", s.fd)
			s.close()
			w := e.async(func() string { return c.writeIn(everything, 16<<10) })
			time.Sleep(time.Duration(5*i) * time.Millisecond) // any moment will do
			e.kill(pid)
			r := w.wait()
			if strings.HasSuffix(r, "EPIPE") || strings.HasSuffix(r, "ECONNRESET") {
				r = "the writer is told"
			}
			seen[r]++
			c.close()
		}
		e.Say("kill -9", seen)
	},
}
