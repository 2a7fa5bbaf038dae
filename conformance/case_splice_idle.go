// SPDX-License-Identifier: Apache-2.0

package conformance

var spliceIdle = Case{
	Name: "splice-after-recv-idle", Guarantee: "G5", Modes: allModes,
	Doc: "a reader that turns from recv to splice when nothing is queued, and waits in poll first",
	Run: func(e *Env) {
		c, s := e.settled()
		for range 4 {
			w := e.async(func() string { return s.splice(5000) })
			w.asleep()
			e.Say("client writes", c.write(5000))
			e.Say("server splices", w.wait())
		}
	},
}
