// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"

	"golang.org/x/sys/unix"
)

var fastopen = Case{
	Name: "fastopen", Guarantee: "G1", Modes: nonBlocking, Control: nonBlocking,
	Doc: "TCP Fast Open: data in the SYN comes before what is sent later",
	Run: func(e *Env) {
		l := e.listen(16, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16) })
		fd, err := e.socket(l.addr.Addr(), unix.IPPROTO_TCP)
		e.must(err, "open a socket")
		c := e.sock("client", fd)
		c.stream = 1
		n, err := unix.SendmsgN(fd, c.next(500), nil, sockaddr(l.addr), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL)
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			e.Say("MSG_FASTOPEN", errname(err))
			return
		}
		if n <= 0 {
			c.sent = 0
		}
		e.Say("client sends with the SYN", n)
		c.poll(unix.POLLOUT, e.patience)
		s := l.accept()
		s.incoming, s.stream, c.incoming = 1, 2, 2
		// Not read yet: the next bytes must not pass those in the SYN.
		e.Say("client writes", c.write(1000))
		e.Say("server reads", s.read(int(c.sent)))
		e.Say("server writes", s.write(1000))
		e.Say("client reads", c.read(1000))
	},
}
