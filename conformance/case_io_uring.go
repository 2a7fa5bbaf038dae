// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

var ioUring = Case{
	Name: "io_uring", Guarantee: "G5", Modes: allModes,
	Doc: "io_uring: poll, recv and send",
	Run: func(e *Env) {
		c, s := e.settled()
		r, err := e.newRing()
		if err != nil {
			e.Say("io_uring", "unavailable")
			return
		}
		const opPoll, opSend, opRecv = 6, 26, 27
		buf := make([]byte, 5000)
		for range 3 {
			e.Say("send", r.do(opSend, c.fd, c.next(3000), unix.MSG_NOSIGNAL))
			e.Say("poll", eventNames(int16(r.do(opPoll, s.fd, nil, unix.POLLIN))))
			s.arrived(3000)
			n := r.do(opRecv, s.fd, buf, 0)
			e.Say("recv", fmt.Sprintf("%d, %s", n, s.match(buf[:max(0, n)])))
		}
		// One that waits.
		w := e.async(func() string { return fmt.Sprint(eventNames(int16(r.do(opPoll, s.fd, nil, unix.POLLIN)))) })
		w.asleep()
		e.Say("client writes", c.write(100))
		e.Say("poll", w.wait())
		e.Say("server reads", s.read(100))
	},
}

// ring is an io_uring with one request at a time.
type ring struct {
	fd           int
	sq, cq, sqes []byte
	sqOff, cqOff ringOffsets
}

type ringOffsets struct{ head, tail, mask, array uint32 }

func (e *Env) newRing() (*ring, error) {
	var p struct { // io_uring_params
		sqEntries, cqEntries uint32
		_                    [8]uint32
		sq, cq               [10]uint32
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r := &ring{fd: e.own(int(fd))}
	r.sqOff = ringOffsets{head: p.sq[0], tail: p.sq[1], mask: p.sq[2], array: p.sq[6]}
	r.cqOff = ringOffsets{head: p.cq[0], tail: p.cq[1], mask: p.cq[2], array: p.cq[5]}
	const offSQ, offCQ, offSQEs = 0, 0x8000000, 0x10000000
	var err error
	if r.sq, err = unix.Mmap(r.fd, offSQ, int(r.sqOff.array+4*p.sqEntries), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if r.cq, err = unix.Mmap(r.fd, offCQ, int(r.cqOff.array+16*p.cqEntries), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	r.sqes, err = unix.Mmap(r.fd, offSQEs, int(64*p.sqEntries), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return r, err
}

func word(b []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// do carries out one request and returns its result.
func (r *ring) do(op byte, fd int, buf []byte, flags uint32) int {
	tail := *word(r.sq, r.sqOff.tail)
	i := tail & *word(r.sq, r.sqOff.mask)
	sqe := r.sqes[64*i : 64*i+64]
	clear(sqe)
	sqe[0] = op
	*word(sqe, 4) = uint32(fd)
	var pin runtime.Pinner
	defer pin.Unpin()
	if len(buf) > 0 {
		pin.Pin(&buf[0])
		*(*uint64)(unsafe.Pointer(&sqe[16])) = uint64(uintptr(unsafe.Pointer(&buf[0])))
		*word(sqe, 24) = uint32(len(buf))
	}
	*word(sqe, 28) = flags
	*word(r.sq, r.sqOff.array+4*i) = i
	atomic.StoreUint32(word(r.sq, r.sqOff.tail), tail+1)
	const getEvents = 1
	for submit := uintptr(1); ; submit = 0 {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, getEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return -int(errno)
		}
		head := *word(r.cq, r.cqOff.head)
		if head == atomic.LoadUint32(word(r.cq, r.cqOff.tail)) {
			continue
		}
		cqe := r.cqOff.array + 16*(head&*word(r.cq, r.cqOff.mask))
		res := int32(*word(r.cq, cqe+8))
		atomic.StoreUint32(word(r.cq, r.cqOff.head), head+1)
		return int(res)
	}
}
