// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var tcpInfoBytes = Case{
	Name: "tcp-info-bytes", Guarantee: "G5", Modes: Blocking | Level,
	Doc: "TCP_INFO counts the bytes that were received",
	Run: func(e *Env) {
		c, s := e.settled()
		count := func() uint64 {
			info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			e.must(err, "TCP_INFO")
			return info.Bytes_received
		}
		before := count()
		c.write(10000)
		s.read(10000)
		e.Say("bytes_received grows by", count()-before)
	},
}
