// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var tcpInfo = Case{
	Name: "tcp-info", Guarantee: "G6", Modes: allModes,
	Doc: "TCP_INFO: states through a connection's life, nothing unacknowledged at rest",
	Run: func(e *Env) {
		c, s := e.settled()
		tell := func(x *Sock) {
			info, err := unix.GetsockoptTCPInfo(x.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			e.must(err, "TCP_INFO")
			e.Say(x.who, fmt.Sprintf("state %d, unacked %d, lost %d, notsent %d, mss set %v", info.State, info.Unacked, info.Lost, info.Notsent_bytes, info.Snd_mss > 0))
		}
		e.Say("client writes", c.write(10000))
		e.Say("server reads", s.read(10000))
		c.drained()
		tell(c)
		tell(s)
		e.Say("shutdown", c.shutdown(unix.SHUT_WR))
		e.Say("server reads", s.read(everything))
		c.drained()
		tell(s)
		e.Say("server closes", s.close())
		e.Say("client reads", c.read(everything))
	},
}
