// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var waitall = Case{
	Name: "waitall", Guarantee: "G4", Modes: allModes,
	Doc: "MSG_WAITALL over two messages; a non-blocking reader gets what is there",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(400))
		s.arrived(400)
		r := e.async(func() string {
			b := make([]byte, 1000)
			n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_WAITALL)
			return moved(n, err) + ", " + s.match(b[:max(0, n)])
		})
		if e.Mode != Blocking {
			e.Say("server reads", r.wait())
			e.Say("client writes", c.write(600))
			e.Say("server reads", s.read(600))
			return
		}
		r.asleep()
		e.Say("client writes", c.write(600))
		e.Say("server reads", r.wait())
	},
}
