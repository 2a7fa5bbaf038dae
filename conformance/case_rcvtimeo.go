// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"time"

	"golang.org/x/sys/unix"
)

var rcvtimeo = Case{
	Name: "rcvtimeo", Guarantee: "G4", Modes: Blocking,
	Doc: "SO_RCVTIMEO ends a read with EAGAIN; bytes that come in time are read",
	Run: func(e *Env) {
		c, s := e.settled()
		tv := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
		e.must(unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), "SO_RCVTIMEO")
		e.Say("server reads", s.read(100))
		e.Say("client writes", c.write(100))
		e.Say("server reads", s.read(100))
		e.Say("server reads", s.read(100))
	},
}
