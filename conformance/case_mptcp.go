// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

var mptcp = Case{
	Name: "mptcp", Guarantee: "G5", Modes: allModes,
	Doc: "MPTCP sockets, whose subflows are TCP sockets",
	Run: func(e *Env) {
		const mptcp = 262
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcp)
		if err != nil {
			e.Say("MPTCP", "unavailable")
			return
		}
		unix.Close(fd) //nolint:errcheck // was only a question
		l := e.listenOn(e.config.ServerNetns, netip.AddrPortFrom(e.config.V4, 0), mptcp, 16, nil)
		c := e.dialFrom("", l.addr, mptcp, nil)
		_, s := couple(c, l.accept())
		for range 5 {
			e.Say("client writes", c.write(3000))
			e.Say("server reads", s.read(3000))
			e.Say("server writes", s.write(1000))
			e.Say("client reads", c.read(1000))
		}
		e.Say("client closes", c.close())
		e.Say("server reads", s.read(1))
	},
}
