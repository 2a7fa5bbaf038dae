// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var peekOff = Case{
	Name: "peek-offset", Guarantee: "G5", Modes: allModes,
	Doc: "SO_PEEK_OFF: each peek goes on where the last one ended",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("SO_PEEK_OFF", s.option(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0))
		e.Say("client writes", c.write(1000))
		b := make([]byte, 1000)
		s.poll(unix.POLLIN, e.patience)
		c.drained()
		for _, n := range []int{400, 600} {
			m, _, err := unix.Recvfrom(s.fd, b[:n], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			at := s.got
			if n == 600 {
				s.got += 400
			}
			e.Say("server peeks", moved(m, err)+", "+s.match(b[:max(0, m)]))
			s.got = at
		}
		e.Say("server reads", s.read(1000))
	},
}
