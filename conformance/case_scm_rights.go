// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var scmRights = Case{
	Name: "fd-passing", Guarantee: "G6", Modes: allModes,
	Doc: "a socket sent over a unix socket (SCM_RIGHTS) and closed by its sender goes on",
	Run: func(e *Env) {
		c, s := e.settled()
		u, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		e.must(err, "socketpair")
		e.own(u[0])
		e.own(u[1])
		e.Say("client writes", c.write(700)) // is there while the socket is under way
		e.must(unix.Sendmsg(u[0], []byte{0}, unix.UnixRights(s.fd), nil, 0), "pass the socket")
		e.Say("server closes", s.close())
		e.Say("client writes", c.write(300))
		control := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(u[1], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
		e.must(err, "receive the socket")
		msgs, err := unix.ParseSocketControlMessage(control[:n])
		e.must(err, "receive the socket")
		fds, err := unix.ParseUnixRights(&msgs[0])
		e.must(err, "receive the socket")
		passed := e.sock("server", fds[0])
		passed.stream, passed.incoming, passed.sent, passed.got = s.stream, s.incoming, s.sent, s.got
		e.Say("server reads", passed.read(1000))
		e.Say("server writes", passed.write(1000))
		e.Say("client reads", c.read(1000))
		e.Say("server closes", passed.close())
		e.ended(c)
	},
}
