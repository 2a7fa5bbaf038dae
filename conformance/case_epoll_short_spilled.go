// SPDX-License-Identifier: Apache-2.0

package conformance

import "time"

var epollShortSpilled = Case{
	Name: "edge-short-read-full", Guarantee: "G5", Modes: Edge,
	Doc: "the same after the sender had spilled, and stopped",
	Run: func(e *Env) {
		c, s := e.settled()
		// A little more than the bound of the short path, within the stack's window.
		n, _ := c.fill(50000, 4<<20)
		time.Sleep(2 * e.quiet)
		// Woken by the first bytes, such a reader has had its event when it begins to read.
		for epollWait(s.epoll, 0) != 0 {
		}
		e.Say("server reads", s.trusting(n))
	},
}
