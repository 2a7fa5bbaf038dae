// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var sndtimeo = Case{
	Name: "sndtimeo", Guarantee: "G4", Modes: Blocking, Control: Blocking,
	Doc: "SO_SNDTIMEO ends a write to a peer that does not read",
	Run: func(e *Env) {
		c, s := e.settled()
		tv := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
		e.must(unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv), "SO_SNDTIMEO")
		n, stopped := c.fill(64<<10, tooMuch)
		e.Say("stopped by", stopped)
		e.Say("all of it arrives", s.read(n) == fmt.Sprintf("%d bytes", n))
	},
}

// tooMuch is more than TCP takes from a sender whose peer does not read.
const tooMuch = 48 << 20
