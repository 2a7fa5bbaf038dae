// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

var ipv6 = Case{
	Name: "ipv6", Guarantee: "G2", Modes: allModes,
	Doc: "IPv6: bytes, and RST for bytes unread",
	Run: func(e *Env) {
		l := e.listenOn(e.config.ServerNetns, netip.AddrPortFrom(e.config.V6, 0), unix.IPPROTO_TCP, 16, nil)
		c, s := l.pair()
		settle(c, s)
		e.transfer(c, s, 200000, 64<<10)
		e.Say("client writes", c.write(100))
		s.arrived(100)
		e.Say("server closes", s.close())
		e.Say("client polls", c.events(unix.POLLRDHUP))
		e.ended(c)
	},
}
