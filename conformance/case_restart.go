// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var restart = Case{
	Name: "signal-restart", Guarantee: "G4", Modes: Blocking,
	Doc: "signals with SA_RESTART: the read goes on",
	Run: func(e *Env) {
		c, s := e.settled()
		e.handle(unix.SIGUSR2, true)
		r := e.async(func() string { return s.read(100) })
		for range 5 {
			r.asleep()
			r.signal(unix.SIGUSR2)
		}
		r.asleep()
		e.Say("client writes", c.write(100))
		e.Say("server reads", r.wait())
	},
}
