// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var keepalive = Case{
	Name: "keepalive", Guarantee: "G6", Modes: allModes,
	Doc: "keepalive and TCP_USER_TIMEOUT: the options stay, the connection lives through probes",
	Run: func(e *Env) {
		c, s := e.settled()
		options := []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2000},
		}
		for _, o := range options {
			e.Say("set", c.option(o.level, o.name, o.value))
		}
		e.Say("client writes", c.write(100)) // unread while the probes go
		time.Sleep(1200 * time.Millisecond)
		for _, o := range options {
			v, err := unix.GetsockoptInt(c.fd, o.level, o.name)
			e.Say("get", fmt.Sprint(v, done(err)))
		}
		e.Say("server reads", s.read(100))
		e.Say("client polls", c.events(0))
	},
}
