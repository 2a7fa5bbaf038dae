// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var tcpInq = Case{
	Name: "tcp-inq", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "TCP_INQ: each recvmsg says how much is left",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("TCP_INQ", s.option(unix.IPPROTO_TCP, unix.TCP_INQ, 1))
		for range 2 {
			e.Say("client writes", c.write(1000))
			s.arrived(1000)
			for _, n := range []int{400, 600} {
				e.Say("server reads", s.recvmsg(n))
			}
		}
	},
}

// recvmsg is one call, with its control messages.
func (s *Sock) recvmsg(n int) string {
	b, control := make([]byte, n), make([]byte, 256)
	m, cn, flags, _, err := unix.Recvmsg(s.fd, b, control, unix.MSG_DONTWAIT)
	if err != nil {
		return errname(err)
	}
	msgs, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		return errname(err)
	}
	out := fmt.Sprintf("%s, flags %#x", s.match(b[:m]), flags)
	for _, c := range msgs {
		out += fmt.Sprintf(", control %d/%d", c.Header.Level, c.Header.Type)
		if c.Header.Level == unix.IPPROTO_TCP && len(c.Data) >= 4 {
			out += fmt.Sprintf(" = %d", binary.NativeEndian.Uint32(c.Data))
		}
	}
	return out
}
