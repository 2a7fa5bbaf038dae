// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var mixedQueues = Case{
	Name: "mixed-queues", Guarantee: "G1", Modes: nonBlocking, Control: 0,
	Doc: "bytes that must take the stack (SO_ZEROCOPY) between others that need not: in order",
	Run: func(e *Env) {
		c, s := e.settled()
		for i := range 6 {
			e.Say("SO_ZEROCOPY", c.option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, i%2))
			e.Say("client writes", c.write(2000))
		}
		e.Say("server reads", s.read(12000))
		e.Say("client writes", c.write(2000))
		e.Say("server reads", s.read(2000))
	},
}
