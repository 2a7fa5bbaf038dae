// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var signalWriter = Case{
	Name: "signal-writer", Guarantee: "G4", Modes: Blocking, Control: Blocking,
	Doc: "a signal, without SA_RESTART, ends a write that waits for room",
	Run: func(e *Env) {
		c, s := e.settled()
		e.handle(unix.SIGUSR1, false)
		total := 0
		w := e.async(func() string {
			n, stopped := c.fill(64<<10, tooMuch)
			total = n
			return stopped
		})
		var r string
		// A write that had moved some bytes returns their number: the next one is interrupted.
		for range 200 {
			w.asleep()
			select {
			case r = <-w.result:
			default:
				w.signal(unix.SIGUSR1)
				continue
			}
			break
		}
		e.Say("client writes", r)
		e.Say("all of it arrives", s.read(total) == fmt.Sprintf("%d bytes", total))
	},
}
