// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

var dualStack = Case{
	Name: "dual-stack", Guarantee: "G2", Modes: allModes,
	Doc: "an IPv4 client of an IPv6 listener, as every Go and Java server has one",
	Run: func(e *Env) {
		l := e.listenOn(e.config.ServerNetns, netip.AddrPortFrom(netip.IPv6Unspecified(), 0), unix.IPPROTO_TCP, 16, nil)
		c := e.dialFrom("", netip.AddrPortFrom(e.config.V4, l.addr.Port()), unix.IPPROTO_TCP, nil)
		_, s := couple(c, l.accept())
		settle(c, s)
		e.transfer(c, s, 200000, 64<<10)
		e.Say("server closes", s.close())
		e.ended(c)
	},
}
