// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"time"

	"golang.org/x/sys/unix"
)

var epollLevel = Case{
	Name: "epoll-level", Guarantee: "G5", Modes: allModes,
	Doc: "level-triggered epoll reports what was left by a short read",
	Run: func(e *Env) {
		c, s := e.settled()
		ep := e.epollOn(s.fd, unix.EPOLLIN|unix.EPOLLRDHUP)
		look := func(wait time.Duration) {
			e.Say("epoll", eventNames(int16(epollWait(ep, wait))))
		}
		e.Say("client writes", c.write(1000))
		look(e.patience)
		s.arrived(1000)
		e.Say("server reads", s.read(400))
		look(e.patience)
		e.Say("server reads", s.read(600))
		look(e.quiet)
		e.Say("client closes", c.close())
		look(e.patience)
	},
}
