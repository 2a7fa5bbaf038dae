// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

var zerocopyReceive = Case{
	Name: "zerocopy-receive", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "TCP_ZEROCOPY_RECEIVE knows of every byte",
	Run: func(e *Env) {
		const size = 16 << 10
		c, s := e.settled()
		area, err := unix.Mmap(s.fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			e.Say("mmap", errname(err))
			return
		}
		defer unix.Munmap(area) //nolint:errcheck // ours
		for range 2 {
			e.Say("client writes", c.write(size))
			s.arrived(size)
			var zc struct { // tcp_zerocopy_receive
				address      uint64
				length, skip uint32
				_            uint32
				err          int32
				_            [5]uint64
			}
			zc.address, zc.length = uint64(uintptr(unsafe.Pointer(&area[0]))), size
			n := uint32(unsafe.Sizeof(zc))
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE,
				uintptr(unsafe.Pointer(&zc)), uintptr(unsafe.Pointer(&n)), 0)
			if errno != 0 {
				e.Say("TCP_ZEROCOPY_RECEIVE", errname(errno))
				return
			}
			// How many depends on how they were cut into segments.
			e.Say("TCP_ZEROCOPY_RECEIVE", fmt.Sprintf("bytes mapped or to copy: %v, error %d", zc.length+zc.skip > 0, zc.err))
			s.got += int64(zc.length)
			e.Say("server reads the rest", s.read(size-int(zc.length)) == fmt.Sprintf("%d bytes", size-int(zc.length)))
		}
	},
}
