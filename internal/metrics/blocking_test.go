// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// blocking returns the accepted end of a connection between blocking sockets,
// which package net does not make.
func blocking(t *testing.T) *os.File {
	t.Helper()
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) }) //nolint:errcheck // the test is over
		return fd
	}
	l, c := socket(), socket()
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(c, addr); err != nil {
		t.Fatal(err)
	}
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "accepted")
	t.Cleanup(func() { f.Close() })
	return f
}
