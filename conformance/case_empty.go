// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var empty = Case{
	Name: "empty", Guarantee: "G5", Modes: allModes,
	Doc: "sends of nothing send nothing, reads of nothing return at once",
	Run: func(e *Env) {
		c, s := e.settled()
		n, err := unix.SendmsgN(c.fd, nil, nil, nil, unix.MSG_NOSIGNAL)
		e.Say("client sends nothing", moved(n, err))
		e.Say("server polls", s.idle2(e))
		e.Say("client writes", c.write(10))
		s.arrived(10)
		n, _, err = unix.Recvfrom(s.fd, nil, 0)
		e.Say("server reads nothing", moved(n, err))
		e.Say("server reads", s.read(10))
	},
}
