// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"time"
)

var backPressureBlocking = Case{
	Name: "back-pressure-waits", Guarantee: "G3", Modes: Blocking | Level,
	Doc: "a writer that waits for a slow reader: every byte arrives, in order",
	Run: func(e *Env) {
		c, s := e.settled()
		const size = 20 << 20
		w := e.async(func() string { return c.write(size) })
		for range 20 {
			time.Sleep(time.Millisecond) // lags
			if r := s.read(size / 20); r != fmt.Sprintf("%d bytes", size/20) {
				e.Say("server reads", r)
			}
		}
		e.Say("client wrote", w.wait())
	},
}
