// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var readWrite = Case{
	Name: "read-write", Guarantee: "G1", Modes: allModes,
	Doc: "read and write, which have no flags, and pieces that are not the messages",
	Run: func(e *Env) {
		c, s := e.settled()
		for range 5 {
			n, err := unix.Write(c.fd, c.next(1000))
			e.Say("write", moved(n, err))
		}
		e.Say("server reads", s.readWith(5000, 777, func(b []byte) (int, error) { return unix.Read(s.fd, b) }))
		e.Say("nothing is left", s.idle2(e))
	},
}

// idle2 is idle for any mode: a blocking socket must not be read.
func (s *Sock) idle2(e *Env) string { return eventNames(s.poll(unix.POLLIN, e.quiet)) }
