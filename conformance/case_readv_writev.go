// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var readvWritev = Case{
	Name: "readv-writev", Guarantee: "G5", Modes: allModes,
	Doc: "readv and writev with several buffers",
	Run: func(e *Env) {
		c, s := e.settled()
		n, err := unix.Writev(c.fd, [][]byte{c.next(100), c.next(200), c.next(4096)})
		e.Say("writev", moved(n, err))
		s.arrived(4396)
		bufs := [][]byte{make([]byte, 1), make([]byte, 299), make([]byte, 8000)}
		n, err = unix.Readv(s.fd, bufs)
		e.Say("readv", moved(n, err))
		e.Say("buffers", s.match(append(append(bufs[0], bufs[1]...), bufs[2][:max(0, min(n-300, 8000))]...)))
	},
}
