// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"

	"golang.org/x/sys/unix"
)

var trunc = Case{
	Name: "trunc", Guarantee: "G5", Modes: allModes,
	Doc: "MSG_TRUNC throws bytes away without copying them",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("client writes", c.write(1000))
		s.arrived(1000)
		b := make([]byte, 400)
		n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_TRUNC)
		e.Say("server drops", moved(n, err))
		e.Say("the buffer is as it was", bytes.Equal(b, make([]byte, 400)))
		s.got += int64(max(0, n))
		e.Say("server reads", s.read(600))
	},
}
