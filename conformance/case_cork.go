// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var cork = Case{
	Name: "cork", Guarantee: "G1", Modes: allModes,
	Doc: "TCP_CORK, MSG_MORE and Nagle: whatever the pieces, the bytes are right",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("TCP_CORK", c.option(unix.IPPROTO_TCP, unix.TCP_CORK, 1))
		for range 3 {
			e.Say("client writes", c.write(100))
		}
		e.Say("TCP_CORK", c.option(unix.IPPROTO_TCP, unix.TCP_CORK, 0))
		e.Say("server reads", s.read(300))
		for _, flags := range []int{unix.MSG_MORE, unix.MSG_MORE, 0} {
			n, err := unix.SendmsgN(c.fd, c.next(100), nil, nil, flags|unix.MSG_NOSIGNAL)
			e.Say("client sends", moved(n, err))
		}
		e.Say("server reads", s.read(300))
		e.Say("TCP_NODELAY", c.option(unix.IPPROTO_TCP, unix.TCP_NODELAY, 0))
		for range 10 {
			e.Say("client writes", c.write(10))
		}
		e.Say("server reads", s.read(100))
	},
}
