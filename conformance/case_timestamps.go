// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"time"

	"golang.org/x/sys/unix"
)

var timestamps = Case{
	Name: "timestamps", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "SO_TIMESTAMPNS: recvmsg says when the bytes came",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("SO_TIMESTAMPNS", s.option(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
		time.Sleep(2 * e.quiet) // the kernel begins to stamp a moment later
		for range 2 {
			e.Say("client writes", c.write(1000))
			s.arrived(1000)
			e.Say("server reads", s.recvmsg(1000))
		}
	},
}
