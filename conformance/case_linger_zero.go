// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var lingerZero = Case{
	Name: "linger-0", Guarantee: "G6", Modes: allModes,
	Doc: "SO_LINGER 0: close is RST",
	Run: func(e *Env) {
		c, s := e.settled()
		e.must(unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "SO_LINGER")
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
