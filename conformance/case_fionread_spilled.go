// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var fionreadSpilled = Case{
	Name: "fionread-full", Guarantee: "G5", Modes: nonBlocking,
	Doc: "FIONREAD never says 0 while there is something to read, up to a full queue and down again",
	Run: func(e *Env) {
		c, s := e.settled()
		total, _ := c.fill(64<<10, tooMuch)
		zero := false
		for left := total; left > 0 && !zero; {
			s.poll(unix.POLLIN, e.patience)
			n, err := unix.IoctlGetInt(s.fd, unix.SIOCINQ)
			e.must(err, "FIONREAD")
			zero = n == 0
			step := min(left, 100000)
			if r := s.read(step); r != fmt.Sprintf("%d bytes", step) {
				e.Say("server reads", r)
				return
			}
			left -= step
		}
		e.Say("FIONREAD says 0 with bytes there", zero)
	},
}
