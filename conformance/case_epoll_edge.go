// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"time"

	"golang.org/x/sys/unix"
)

var epollEdge = Case{
	Name: "epoll-edge", Guarantee: "G5", Modes: nonBlocking,
	Doc: "edge-triggered epoll: an event for each arrival, none for what was left",
	Run: func(e *Env) {
		c, s := e.settled()
		ep := e.epollOn(s.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET)
		look := func(wait time.Duration) {
			e.Say("epoll", eventNames(int16(epollWait(ep, wait))))
		}
		look(e.quiet)
		e.Say("client writes", c.write(1000))
		look(e.patience)
		s.arrived(1000)
		e.Say("server reads", s.read(400))
		look(e.quiet)
		e.Say("client writes", c.write(100))
		look(e.patience)
		e.Say("server reads", s.read(700))
		look(e.quiet)
		e.Say("client writes", c.write(100))
		look(e.patience)
		e.Say("server reads", s.read(100))
		e.Say("client closes", c.close())
		look(e.patience)
	},
}
