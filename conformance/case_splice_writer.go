// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var spliceWriter = Case{
	Name: "splice-writer", Guarantee: "G5", Modes: allModes,
	Doc: "splice from a pipe to the socket",
	Run: func(e *Env) {
		c, s := e.settled()
		r, w := e.pipe()
		for range 10 {
			_, err := unix.Write(w, c.next(20000))
			e.must(err, "fill the pipe")
			n, err := unix.Splice(r, nil, c.fd, nil, 20000, unix.SPLICE_F_MOVE)
			e.Say("splice", moved(int(n), err))
			e.Say("server reads", s.read(20000))
		}
	},
}

func (e *Env) pipe() (r, w int) {
	var p [2]int
	e.must(unix.Pipe2(p[:], unix.O_CLOEXEC), "pipe")
	return e.own(p[0]), e.own(p[1])
}
