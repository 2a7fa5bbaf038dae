// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var turnedBlockingUsed = Case{
	Name: "turned-blocking-used", Guarantee: "G4", Modes: Level,
	Doc: "a socket that turned to blocking mode, after the next message in either direction",
	Run: func(e *Env) {
		c, s := e.settled()
		s.setBlocking(true)
		e.handle(unix.SIGUSR2, true)
		for range 3 {
			e.Say("client writes", c.write(100))
			e.Say("server reads", s.read(100))
			e.Say("server writes", s.write(100))
			e.Say("client reads", c.read(100))
		}
		r := e.async(func() string { return s.read(100) })
		r.asleep()
		r.signal(unix.SIGUSR2)
		r.asleep()
		e.Say("client writes", c.write(100))
		e.Say("server reads", r.wait())
	},
}
