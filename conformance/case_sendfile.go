// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var sendfile = Case{
	Name: "sendfile", Guarantee: "G5", Modes: allModes,
	Doc: "sendfile from a file to the socket, then send again",
	Run: func(e *Env) {
		const size = 300000
		c, s := e.settled()
		fd, err := unix.MemfdCreate("conformance", unix.MFD_CLOEXEC)
		e.must(err, "memfd")
		e.own(fd)
		_, err = unix.Pwrite(fd, c.next(size), 0)
		e.must(err, "write the file")
		w := e.async(func() string {
			for total := 0; total < size; {
				n, err := unix.Sendfile(c.fd, fd, nil, size-total)
				switch {
				case errors.Is(err, unix.EAGAIN) && e.Mode != Blocking:
					c.wait(unix.POLLOUT)
				case err != nil || n == 0:
					return fmt.Sprintf("%d bytes, %s", total, done(err))
				default:
					total += n
				}
			}
			return "all"
		})
		e.Say("server reads", s.read(size))
		e.Say("sendfile", w.wait())
		e.Say("client writes", c.write(1000))
		e.Say("server reads", s.read(1000))
	},
}
