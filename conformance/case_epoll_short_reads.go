// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var epollShortReads = Case{
	Name: "edge-short-read", Guarantee: "G5", Modes: Edge,
	Doc: "a reader that takes a short read for the last one, as tokio does",
	Run: func(e *Env) {
		c, s := e.settled()
		w := e.async(func() string { return c.writeIn(3000000, 3000) })
		e.Say("server reads", s.trusting(3000000))
		e.Say("client wrote", w.wait())
	},
}

// trusting reads n bytes, and waits for the next event after every short read.
func (s *Sock) trusting(n int) string {
	buf := make([]byte, 64<<10)
	for total := 0; total < n; {
		m, _, err := unix.Recvfrom(s.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
		case err != nil || m == 0:
			return fmt.Sprintf("%d bytes, %s", total, moved(m, err))
		default:
			if r := s.match(buf[:m]); r != fmt.Sprintf("%d bytes", m) {
				return r
			}
			total += m
		}
		if m < len(buf) && total < n && !s.wait(unix.POLLIN) {
			return "not all, then no event"
		}
	}
	return "all"
}
