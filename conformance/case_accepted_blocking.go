// SPDX-License-Identifier: Apache-2.0

package conformance

import "golang.org/x/sys/unix"

var acceptedBlocking = Case{
	Name: "accepted-blocking", Guarantee: "G4", Modes: Level,
	Doc: "a blocking socket accepted from a non-blocking listener: a signal restarts its first read",
	Run: func(e *Env) {
		l := e.listen(16, nil)
		c, s := couple(e.dial(l, nil), l.accept())
		s.setBlocking(true) // as accept4 without SOCK_NONBLOCK gives it
		e.handle(unix.SIGUSR2, true)
		r := e.async(func() string {
			b := make([]byte, 100)
			n, err := s.recv(b)
			return moved(n, err)
		})
		r.asleep()
		r.signal(unix.SIGUSR2)
		r.asleep()
		e.Say("client writes", c.write(100))
		e.Say("server reads", r.wait())
	},
}
