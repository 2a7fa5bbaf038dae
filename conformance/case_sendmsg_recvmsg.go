// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var sendmsgRecvmsg = Case{
	Name: "sendmsg-recvmsg", Guarantee: "G5", Modes: allModes,
	Doc: "sendmsg and recvmsg with several buffers",
	Run: func(e *Env) {
		c, s := e.settled()
		n, err := unix.SendmsgBuffers(c.fd, [][]byte{c.next(10), c.next(1000), c.next(1), c.next(3000)}, nil, nil, unix.MSG_NOSIGNAL)
		e.Say("sendmsg", moved(n, err))
		s.arrived(4011)
		bufs := [][]byte{make([]byte, 5), make([]byte, 2000), make([]byte, 5000)}
		n, oob, flags, _, err := unix.RecvmsgBuffers(s.fd, bufs, make([]byte, 64), 0)
		e.Say("recvmsg", fmt.Sprintf("%s, %d bytes of control, flags %#x", moved(n, err), oob, flags))
		e.Say("buffers", s.match(append(append(bufs[0], bufs[1]...), bufs[2][:max(0, min(n-2005, 5000))]...)))
	},
}
