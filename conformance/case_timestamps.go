// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var timestamps = Case{
	Name: "timestamps", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "SO_TIMESTAMPNS: recvmsg says when the bytes came",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("SO_TIMESTAMPNS", s.option(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
		// The kernel begins to stamp a moment later: not before a stamp was seen, or for a second.
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			c.write(1)
			s.arrived(1)
			if strings.Contains(s.recvmsg(1), "control") {
				break
			}
		}
		for range 2 {
			e.Say("client writes", c.write(1000))
			s.arrived(1000)
			e.Say("server reads", s.recvmsg(1000))
		}
	},
}
