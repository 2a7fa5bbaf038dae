// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"

	"golang.org/x/sys/unix"
)

var spliceReader = Case{
	Name: "splice-reader", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "a reader that only uses splice, as io.Copy, HAProxy and docker-proxy do",
	Run: func(e *Env) {
		c, s := e.pair()
		for range 10 {
			e.Say("client writes", c.write(20000))
			e.Say("server splices", s.splice(20000))
		}
		e.Say("server writes", s.write(1000))
		e.Say("client reads", c.read(1000))
		e.Say("client closes", c.close())
		e.Say("server splices", s.splice(1))
	},
}

// splice reads n bytes through a pipe.
func (s *Sock) splice(n int) string {
	r, w := s.e.pipe()
	defer s.e.closeFD(r) //nolint:errcheck // a pipe
	defer s.e.closeFD(w) //nolint:errcheck // a pipe
	return s.readWith(n, 16<<10, func(b []byte) (int, error) {
		// Never blocks in the kernel, so that a reader that sees nothing says so.
		if s.e.Mode == Blocking && s.poll(unix.POLLIN, s.e.patience) == 0 {
			return 0, unix.ETIMEDOUT
		}
		m, err := unix.Splice(s.fd, nil, w, nil, len(b), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EAGAIN) && s.poll(unix.POLLIN, 0) != 0 {
			return 0, errors.New("poll says there is something, splice that there is not")
		}
		if err != nil || m == 0 {
			return int(m), err
		}
		return unix.Read(r, b[:m])
	})
}
