// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errClosed is an end of stream at a place where more bytes were due.
var errClosed = errors.New("the peer closed the connection")

// socket is a connected stream socket. Its calls go to the kernel without the
// Go scheduler's bookkeeping (RawSyscall): the process has one thread at work
// and nothing else to run, so a figure is that of the socket path.
type socket struct {
	fd       int
	epoll    int // -1 for a blocking socket
	events   uint32
	deadline time.Duration // bound of every single wait
}

// address splits "tcp:127.0.0.1:80" or "unix:/run/x" into what the kernel wants.
func address(s string) (unix.Sockaddr, int, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		return &unix.SockaddrUnix{Name: rest}, unix.AF_UNIX, nil
	case "tcp":
		ap, err := netip.ParseAddrPort(rest)
		if err != nil {
			return nil, 0, fmt.Errorf("address %q: %w", s, err)
		}
		if ap.Addr().Is4() {
			return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, unix.AF_INET, nil
		}
		return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}, unix.AF_INET6, nil
	}
	return nil, 0, fmt.Errorf("address %q: want tcp:IP:PORT or unix:PATH", s)
}

// addressOf is the inverse of [address].
func addressOf(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return "unix:" + sa.Name
	case *unix.SockaddrInet4:
		return "tcp:" + netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return "tcp:" + netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return ""
}

// openSocket makes a socket that is non-blocking from its first moment, or
// blocking with the same bound as a socket timeout.
func openSocket(family int, blocking bool, deadline time.Duration) (int, error) {
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if !blocking {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := boundWaits(fd, blocking, deadline); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func boundWaits(fd int, blocking bool, deadline time.Duration) error {
	if !blocking {
		return nil
	}
	limit := unix.NsecToTimeval(deadline.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("SO_RCVTIMEO: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return fmt.Errorf("SO_SNDTIMEO: %w", err)
	}
	return nil
}

func newSocket(fd, family int, blocking bool, deadline time.Duration) (*socket, error) {
	s := &socket{fd: fd, epoll: -1, deadline: deadline}
	if family != unix.AF_UNIX {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return nil, fmt.Errorf("TCP_NODELAY: %w", err)
		}
	}
	if blocking {
		return s, nil
	}
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	s.events = unix.EPOLLIN
	ev := unix.EpollEvent{Events: s.events}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	return s, nil
}

// listen opens a listener and returns the address it got (port 0 is filled in).
func listen(addr string, blocking bool, deadline time.Duration) (fd, family int, bound string, err error) {
	sa, family, err := address(addr)
	if err != nil {
		return -1, 0, "", err
	}
	if fd, err = openSocket(family, blocking, deadline); err != nil {
		return -1, 0, "", err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, 0, "", fmt.Errorf("bind to %s: %w", addr, err)
	}
	if err := unix.Listen(fd, 2*manyConnections); err != nil {
		return -1, 0, "", fmt.Errorf("listen on %s: %w", addr, err)
	}
	if sa, err = unix.Getsockname(fd); err != nil {
		return -1, 0, "", fmt.Errorf("getsockname: %w", err)
	}
	return fd, family, addressOf(sa), nil
}

// accept takes one connection from a listener.
func accept(listener, family int, blocking bool, deadline time.Duration) (*socket, error) {
	flags := unix.SOCK_CLOEXEC
	if !blocking {
		flags |= unix.SOCK_NONBLOCK
		if err := pollFor(listener, unix.POLLIN, deadline); err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
	}
	fd, _, err := unix.Accept4(listener, flags)
	if err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	if err := boundWaits(fd, blocking, deadline); err != nil {
		return nil, err
	}
	return newSocket(fd, family, blocking, deadline)
}

// connect opens a connection; a non-blocking one is non-blocking before it starts.
func connect(addr string, blocking bool, deadline time.Duration) (*socket, error) {
	sa, family, err := address(addr)
	if err != nil {
		return nil, err
	}
	fd, err := openSocket(family, blocking, deadline)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, sa)
	if errors.Is(err, unix.EINPROGRESS) {
		if err = pollFor(fd, unix.POLLOUT, deadline); err == nil {
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); code != 0 {
				err = unix.Errno(code)
			}
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return newSocket(fd, family, blocking, deadline)
}

func pollFor(fd int, events int16, deadline time.Duration) error {
	for end := time.Now().Add(deadline); ; {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("nothing happened for %v", deadline)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// receive reads once into p, waiting first. It returns 0 at the end of the stream.
func (s *socket) receive(p []byte) (int, error) {
	if s.epoll < 0 {
		return s.transferBlocking(unix.SYS_RECVFROM, p, 0, "recv")
	}
	// As an event loop does: wait, then read.
	if err := s.wait(unix.EPOLLIN); err != nil {
		return 0, fmt.Errorf("recv: %w", err)
	}
	return s.transfer(unix.SYS_RECVFROM, p, 0, unix.EPOLLIN, "recv")
}

// receiveFull reads exactly len(p) bytes. It returns errClosed at the end of
// the stream, with eof true if that came before the first byte.
func (s *socket) receiveFull(p []byte) (eof bool, err error) {
	for got := 0; got < len(p); {
		n, err := s.receive(p[got:])
		if err != nil {
			return false, err
		}
		if n == 0 {
			return got == 0, fmt.Errorf("%w after %d of %d bytes", errClosed, got, len(p))
		}
		got += n
	}
	return false, nil
}

// sendAll writes all of p; a non-blocking socket waits only when the kernel says EAGAIN.
func (s *socket) sendAll(p []byte) error {
	for sent := 0; sent < len(p); {
		var n int
		var err error
		if s.epoll < 0 {
			n, err = s.transferBlocking(unix.SYS_SENDTO, p[sent:], unix.MSG_NOSIGNAL, "send")
		} else {
			n, err = s.transfer(unix.SYS_SENDTO, p[sent:], unix.MSG_NOSIGNAL, unix.EPOLLOUT, "send")
		}
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

func (s *socket) transfer(call uintptr, p []byte, flags uintptr, event uint32, what string) (int, error) {
	var since time.Time
	for {
		n, errno := rawTransfer(call, s.fd, p, flags)
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
		default:
			return 0, fmt.Errorf("%s: %w", what, errno)
		}
		// Ready, yet nothing to take: allowed now and then, not for ever.
		if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) > s.deadline {
			return 0, fmt.Errorf("%s: no progress for %v", what, s.deadline)
		}
		if err := s.wait(event); err != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
	}
}

func (s *socket) transferBlocking(call uintptr, p []byte, flags uintptr, what string) (int, error) {
	for {
		n, errno := rawTransfer(call, s.fd, p, flags)
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			// Either the bound has passed or the path broke the promise of a blocking call.
			return 0, fmt.Errorf("%s: blocking call returned EAGAIN", what)
		}
		return 0, fmt.Errorf("%s: %w", what, errno)
	}
}

func rawTransfer(call uintptr, fd int, p []byte, flags uintptr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
	return int(n), errno
}

// wait blocks in epoll until event is there; the registration changes only when
// the direction does.
func (s *socket) wait(event uint32) error {
	if s.events != event {
		ev := unix.EpollEvent{Events: event}
		if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_MOD, s.fd, &ev); err != nil {
			return fmt.Errorf("epoll_ctl: %w", err)
		}
		s.events = event
	}
	var ev unix.EpollEvent
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.epoll), uintptr(unsafe.Pointer(&ev)), 1,
			uintptr(s.deadline.Milliseconds()), 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return fmt.Errorf("epoll_wait: %w", errno)
		case n == 0:
			return fmt.Errorf("nothing happened for %v", s.deadline)
		default:
			return nil
		}
	}
}
