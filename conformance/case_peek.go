// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var peek = Case{
	Name: "peek", Guarantee: "G5", Modes: allModes,
	Doc: "MSG_PEEK leaves the bytes, however often",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		for _, n := range []int{10, 1000, 2000} {
			b := make([]byte, n)
			m, _, err := unix.Recvfrom(s.fd, b, unix.MSG_PEEK)
			at := s.got
			e.Say("server peeks", moved(m, err)+", "+s.match(b[:max(0, m)]))
			s.got = at
		}
		e.Say("server reads", s.read(600))
		b := make([]byte, 1000)
		m, _, err := unix.Recvfrom(s.fd, b, unix.MSG_PEEK)
		e.Say("server peeks", moved(m, err))
		e.Say("server reads", s.read(400))
		m, _, err = unix.Recvfrom(s.fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		e.Say("server peeks", moved(m, err))
	},
}
