// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"golang.org/x/sys/unix"
)

var shutdownWakes = Case{
	Name: "shutdown-wakes", Guarantee: "G4", Modes: allModes,
	Doc: "shutdown(RDWR) by another thread ends a read that waits",
	Run: func(e *Env) {
		_, s := e.settled()
		r := e.async(func() string { return s.read(100) })
		r.asleep()
		e.Say("shutdown", s.shutdown(unix.SHUT_RDWR))
		e.Say("server reads", r.wait())
	},
}
