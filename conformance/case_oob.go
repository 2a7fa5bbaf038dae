// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var oob = Case{
	Name: "oob", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "MSG_OOB: POLLPRI, the mark, and the urgent byte apart from the others",
	Run: func(e *Env) { urgent(e, false) },
}

func urgent(e *Env, inline bool) {
	c, s := e.settled()
	if inline {
		e.Say("SO_OOBINLINE", s.option(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
	}
	e.Say("client writes", c.write(10))
	n, err := unix.SendmsgN(c.fd, []byte("!"), nil, nil, unix.MSG_OOB|unix.MSG_NOSIGNAL)
	e.Say("client sends urgent", moved(n, err))
	e.Say("client writes", c.write(10))
	c.drained()
	s.poll(unix.POLLIN, e.patience)
	e.Say("server polls", eventNames(s.poll(unix.POLLIN|unix.POLLPRI, 0)))
	e.Say("server at the mark", s.ask(unix.SIOCATMARK))
	b := make([]byte, 100)
	for range 4 {
		n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
		e.Say("server reads", moved(n, err))
		e.Say("server at the mark", s.ask(unix.SIOCATMARK))
	}
	n, _, err = unix.Recvfrom(s.fd, b[:1], unix.MSG_OOB|unix.MSG_DONTWAIT)
	e.Say("server reads urgent", moved(n, err))
}
