// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

var eintr = Case{
	Name: "signal", Guarantee: "G4", Modes: Blocking,
	Doc: "a signal with a handler, without SA_RESTART: EINTR",
	Run: func(e *Env) {
		c, s := e.settled()
		e.handle(unix.SIGUSR1, false)
		r := e.async(func() string { return s.read(100) })
		r.asleep()
		r.signal(unix.SIGUSR1)
		e.Say("server reads", r.wait())
		e.Say("client writes", c.write(100))
		e.Say("server reads", s.read(100))
	},
}

// handle sets a handler for a signal: Go's, with or without SA_RESTART.
func (e *Env) handle(sig unix.Signal, restart bool) {
	signal.Notify(make(chan os.Signal, 16), sig)
	const saRestart = 0x10000000
	var sa struct{ _, flags, _, _ uintptr } // the kernel's
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&sa)), 8, 0, 0)
	if errno == 0 {
		sa.flags &^= saRestart
		if restart {
			sa.flags |= saRestart
		}
		_, _, errno = unix.Syscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&sa)), 0, 8, 0, 0)
	}
	if errno != 0 {
		e.must(errno, "sigaction")
	}
}

func (c *call) signal(sig unix.Signal) {
	// A call that returned although it should not has no thread any more: its result tells.
	if err := unix.Tgkill(unix.Getpid(), c.tid, sig); !errors.Is(err, unix.ESRCH) {
		c.e.must(err, "send a signal")
	}
}
