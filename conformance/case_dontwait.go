// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var dontwait = Case{
	Name: "dontwait", Guarantee: "G4", Modes: allModes,
	Doc: "MSG_DONTWAIT on an empty socket is EAGAIN, on a full one as well",
	Run: func(e *Env) {
		c, s := e.settled()
		b := make([]byte, 1000)
		n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
		e.Say("server reads", moved(n, err))
		e.Say("client writes", c.write(100))
		s.arrived(100)
		n, _, err = unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
		e.Say("server reads", moved(n, err)+", "+s.match(b[:max(0, n)]))
		n, _, err = unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
		e.Say("server reads", moved(n, err))
	},
}
