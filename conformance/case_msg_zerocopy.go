// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var msgZerocopy = Case{
	Name: "msg-zerocopy", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "MSG_ZEROCOPY: the completion comes to the error queue",
	Run: func(e *Env) {
		c, s := e.settled()
		e.Say("SO_ZEROCOPY", c.option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1))
		for range 2 {
			n, err := unix.SendmsgN(c.fd, c.next(20000), nil, nil, unix.MSG_ZEROCOPY|unix.MSG_NOSIGNAL)
			e.Say("client sends", moved(n, err))
			e.Say("server reads", s.read(20000))
			e.Say("client polls", eventNames(c.poll(0, e.patience)))
			control := make([]byte, 256)
			_, cn, _, _, err := unix.Recvmsg(c.fd, make([]byte, 1), control, unix.MSG_ERRQUEUE)
			if err != nil {
				e.Say("completion", errname(err))
				continue
			}
			msgs, err := unix.ParseSocketControlMessage(control[:cn])
			e.must(err, "parse the completion")
			for _, m := range msgs {
				d := m.Data // struct sock_extended_err
				e.Say("completion", fmt.Sprintf("errno %d, origin %d, from %d to %d", binary.NativeEndian.Uint32(d), d[4],
					binary.NativeEndian.Uint32(d[8:]), binary.NativeEndian.Uint32(d[12:])))
			}
		}
	},
}
