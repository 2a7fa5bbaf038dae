// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var turnedBlocking = Case{
	Name: "turned-blocking", Guarantee: "G4", Modes: Level,
	Doc: "a socket that turns to blocking mode later, and is read at once: a signal restarts the read",
	Run: func(e *Env) {
		c, s := e.settled()
		s.setBlocking(true)
		e.handle(unix.SIGUSR2, true)
		r := e.async(func() string {
			b := make([]byte, 100)
			n, err := s.recv(b)
			return moved(n, err)
		})
		r.asleep()
		r.signal(unix.SIGUSR2)
		r.asleep()
		e.Say("client writes", c.write(100))
		e.Say("server reads", r.wait())
	},
}
