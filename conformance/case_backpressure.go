// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var backPressure = Case{
	Name: "back-pressure", Guarantee: "G3", Modes: nonBlocking, Control: nonBlocking,
	Doc: "a reader that does not read: EAGAIN after a bounded number of bytes, POLLOUT when it reads",
	Run: func(e *Env) { pressure(e, 64<<10, tooMuch) },
}

func pressure(e *Env, chunk, most int) {
	c, s := e.settled()
	for range 3 {
		n, stopped := 0, ""
		for n < most { // until nothing moves any more: what is under way makes room
			var more int
			more, stopped = c.fill(chunk, most-n)
			n += more
			if c.poll(unix.POLLOUT, e.quiet) == 0 {
				break
			}
		}
		e.Say("stopped by", stopped)
		want := fmt.Sprintf("%d bytes", n)
		if got := s.read(n); got != want {
			e.Say("server reads", got+" of "+want)
			return
		}
		e.Say("server reads", "all of it")
		e.Say("client polls", c.events(unix.POLLOUT))
	}
}
