// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// conn is what an end uses of a connection.
type conn interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetLinger(seconds int) error
	SetDeadline(time.Time) error
}

// blockingConn makes blocking calls on a blocking socket, as most programs that
// are not event loops do.
type blockingConn struct {
	fd       int
	reading  sync.RWMutex // held for reading while a Read runs
	closed   atomic.Bool
	late     atomic.Bool
	watchdog *time.Timer
}

// SetDeadline ends the calls that block then: a socket timeout would change what they do.
func (c *blockingConn) SetDeadline(at time.Time) error {
	c.watchdog = time.AfterFunc(time.Until(at), func() {
		c.late.Store(true)
		if !c.closed.Load() {
			unix.Shutdown(c.fd, unix.SHUT_RDWR) //nolint:errcheck // wakes who waits
		}
	})
	return nil
}

func (c *blockingConn) explain(err error) error {
	if c.late.Load() {
		return os.ErrDeadlineExceeded
	}
	if errors.Is(err, unix.EAGAIN) {
		return damage{fmt.Errorf("a blocking call returned %w", err)}
	}
	return err
}

func (c *blockingConn) Read(p []byte) (int, error) {
	c.reading.RLock()
	defer c.reading.RUnlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	for {
		n, err := unix.Read(c.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, c.explain(err)
		case n == 0:
			return 0, c.explain(io.EOF)
		default:
			return n, nil
		}
	}
}

func (c *blockingConn) Write(p []byte) (int, error) {
	for sent := 0; ; {
		n, err := unix.SendmsgN(c.fd, p[sent:], nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return sent, c.explain(err)
		default:
			if sent += n; sent == len(p) {
				return sent, nil
			}
		}
	}
}

func (c *blockingConn) CloseWrite() error { return unix.Shutdown(c.fd, unix.SHUT_WR) }

func (c *blockingConn) SetLinger(seconds int) error {
	return unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(seconds)})
}

// Close first wakes a reader of the same process, as package net does: while it
// waits in the kernel, the socket would not be closed at all.
func (c *blockingConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.watchdog.Stop()
	unix.Shutdown(c.fd, unix.SHUT_RD) //nolint:errcheck // not connected any more, as a rule
	c.reading.Lock()
	defer c.reading.Unlock()
	return unix.Close(c.fd)
}

func sockaddr(text string) (unix.Sockaddr, error) {
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
}

// dialBlocking connects a socket that is blocking from its first moment.
func dialBlocking(address string) (conn, error) {
	sa, err := sockaddr(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd) //nolint:errcheck // fails anyway
		return nil, err
	}
	return &blockingConn{fd: fd}, nil
}

// blockingListener accepts blocking sockets with blocking calls.
type blockingListener struct {
	fd   int
	addr string
	over atomic.Bool
}

func listenBlocking(address string) (*blockingListener, error) {
	sa, err := sockaddr(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 128)); err != nil {
		return nil, err
	}
	if sa, err = unix.Getsockname(fd); err != nil {
		return nil, err
	}
	in4 := sa.(*unix.SockaddrInet4)
	return &blockingListener{fd: fd, addr: netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)).String()}, nil
}

func (l *blockingListener) accept() (conn, error) {
	for {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		switch {
		case l.over.Load():
			return nil, net.ErrClosed
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case err != nil:
			return nil, err
		default:
			return &blockingConn{fd: fd}, nil
		}
	}
}

func (l *blockingListener) close() {
	l.over.Store(true)
	unix.Shutdown(l.fd, unix.SHUT_RDWR) //nolint:errcheck // wakes accept
}
