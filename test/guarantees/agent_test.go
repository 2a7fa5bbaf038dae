// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sys is what an agent does for its test, over its stdin and stdout. A call that
// the kernel refuses is a Result with an Errno; an error is a broken test.
type Sys struct{}

// serveAgent serves until the test closes the pipe, or dies.
func serveAgent() {
	// Signals of the Go runtime would show as EAGAIN in the blocking reads that
	// accept G4; asyncpreemptoff is set by the parent.
	debug.SetGCPercent(400)
	server := rpc.NewServer()
	if err := server.Register(Sys{}); err != nil {
		panic(err)
	}
	server.ServeConn(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout})
}

// Result of a call. N is the bytes that were moved, in whatever many calls.
type Result struct {
	FD      int
	N       int64
	Errno   unix.Errno
	EOF     bool
	Bad     string        // received bytes that are not the stream's
	Last    time.Duration // the last system call took this long
	Blocked int64         // bytes sent when the socket was full for the first time
	Events  int16
	Name    netip.AddrPort
	Syndata bool // TCP Fast Open: the SYN's data was accepted
	Value   int64
}

func (r Result) String() string {
	s := fmt.Sprintf("%d bytes", r.N)
	if r.EOF {
		s += ", EOF"
	}
	if r.Errno != 0 {
		s += ", " + unix.ErrnoName(r.Errno)
	}
	if r.Bad != "" {
		s += ", " + r.Bad
	}
	return s
}

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	if err != nil && !errors.As(err, &e) {
		panic(err)
	}
	return e
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// pollFor waits for events on one socket; 0 when there were none in time.
func pollFor(fd int, events int16, wait time.Duration) (int16, error) {
	deadline := time.Now().Add(wait)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		_, err := unix.Poll(p, max(0, int(time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return p[0].Revents, err
		}
	}
}

// SocketArgs of a new TCP socket.
type SocketArgs struct {
	Bind     netip.AddrPort // the zero value: not bound
	Family   int
	Blocking bool
	Listen   bool
	Backlog  int
	FastOpen bool
}

// Socket makes a socket, bound and listening where asked for.
func (Sys) Socket(a SocketArgs, r *Result) error {
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if !a.Blocking {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(a.Family, kind, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("TCP_NODELAY: %w", err)
	}
	if a.FastOpen {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16); err != nil {
			return fmt.Errorf("TCP_FASTOPEN: %w", err)
		}
	}
	if a.Bind.IsValid() {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
		if err := unix.Bind(fd, sockaddr(a.Bind)); err != nil {
			return fmt.Errorf("bind to %v: %w", a.Bind, err)
		}
	}
	if a.Listen {
		if err := unix.Listen(fd, a.Backlog); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	r.FD = fd
	return r.name()
}

func (r *Result) name() error {
	sa, err := unix.Getsockname(r.FD)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	r.Name = addrOf(sa)
	return nil
}

// IOArgs of a call on a socket. Stream and Offset say what the bytes are.
type IOArgs struct {
	FD      int
	Addr    netip.AddrPort
	Stream  uint64
	Offset  int64
	N       int64 // bytes in all
	Chunk   int   // bytes a call
	Flags   int
	Wait    time.Duration // how long a non-blocking socket is waited for, each time
	Events  int16
	Pace    time.Duration // a slow reader: rests this long every MiB
	Level   int
	Name    int
	Value   int
	Timeval time.Duration
}

// Connect connects; a non-blocking socket is waited for.
func (Sys) Connect(a IOArgs, r *Result) error {
	r.FD = a.FD
	r.Errno = errnoOf(unix.Connect(a.FD, sockaddr(a.Addr)))
	if r.Errno == unix.EINPROGRESS && a.Wait > 0 {
		return connected(a.FD, a.Wait, r)
	}
	if r.Errno == 0 {
		return r.name()
	}
	return nil
}

// Disconnect takes the socket back to where it can connect again.
func (Sys) Disconnect(a IOArgs, r *Result) error {
	r.FD = a.FD
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, r.Errno = unix.Syscall(unix.SYS_CONNECT, uintptr(a.FD), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	return nil
}

// Connected waits for the end of a handshake that Connect or FastOpen began.
func (Sys) Connected(a IOArgs, r *Result) error { return connected(a.FD, a.Wait, r) }

func connected(fd int, wait time.Duration, r *Result) error {
	r.FD = fd
	events, err := pollFor(fd, unix.POLLOUT, wait)
	if err != nil {
		return err
	}
	if events == 0 {
		r.Errno = unix.ETIMEDOUT
		return nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	r.Errno = unix.Errno(code)
	return errors.Join(err, r.name())
}

// FastOpen connects with data in the SYN where a cookie is known.
func (Sys) FastOpen(a IOArgs, r *Result) error {
	r.FD = a.FD
	n, err := unix.SendmsgN(a.FD, piece(a.Stream, a.Offset, int(a.N)), nil, sockaddr(a.Addr), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL)
	r.N, r.Errno = int64(max(n, 0)), errnoOf(err)
	return nil
}

// AcceptArgs of one accept.
type AcceptArgs struct {
	FD       int
	Blocking bool
	Wait     time.Duration
}

// Accept takes one connection from the listener.
func (Sys) Accept(a AcceptArgs, r *Result) error {
	fd, err := accept(a)
	if errno := unix.Errno(0); errors.As(err, &errno) {
		r.Errno = errno
		return nil
	}
	if err != nil {
		return err
	}
	r.FD = fd
	return r.name()
}

func accept(a AcceptArgs) (int, error) {
	flags := unix.SOCK_CLOEXEC
	if !a.Blocking {
		flags |= unix.SOCK_NONBLOCK
	}
	for {
		events, err := pollFor(a.FD, unix.POLLIN, a.Wait)
		if err != nil {
			return -1, err
		}
		if events == 0 {
			return -1, unix.ETIMEDOUT
		}
		fd, _, err := unix.Accept4(a.FD, flags)
		if errors.Is(err, unix.EAGAIN) { // another accept was faster
			continue
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		return fd, err
	}
}

func isBlocking(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK == 0
}

// Send writes N bytes of the stream, or as many as it can.
func (Sys) Send(a IOArgs, r *Result) error {
	blocking := isBlocking(a.FD)
	for r.N < a.N {
		p := piece(a.Stream, a.Offset+r.N, int(min(int64(a.Chunk), a.N-r.N)))
		start := time.Now()
		n, err := unix.SendmsgN(a.FD, p, nil, nil, unix.MSG_NOSIGNAL|a.Flags)
		r.Last = time.Since(start)
		switch errno := errnoOf(err); {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !blocking && a.Wait > 0:
			if r.Blocked == 0 {
				r.Blocked = r.N
			}
			events, err := pollFor(a.FD, unix.POLLOUT, a.Wait)
			if err != nil {
				return err
			}
			if events == 0 {
				r.Errno = unix.EAGAIN
				return nil
			}
		case errno != 0:
			r.Errno = errno
			return nil
		default:
			r.N += int64(n)
		}
	}
	return nil
}

// Recv reads and checks N bytes of the stream, or less where it ends.
func (Sys) Recv(a IOArgs, r *Result) error {
	blocking := isBlocking(a.FD)
	buf := make([]byte, a.Chunk)
	rest := int64(1 << 20)
	for r.N < a.N {
		p := buf[:min(int64(a.Chunk), a.N-r.N)]
		start := time.Now()
		n, _, err := unix.Recvfrom(a.FD, p, a.Flags)
		r.Last = time.Since(start)
		switch errno := errnoOf(err); {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !blocking && a.Wait > 0:
			events, err := pollFor(a.FD, unix.POLLIN, a.Wait)
			if err != nil {
				return err
			}
			if events == 0 {
				r.Errno = unix.EAGAIN
				return nil
			}
		case errno != 0:
			r.Errno = errno
			return nil
		case n == 0:
			r.EOF = true
			return nil
		default:
			if err := check(a.Stream, a.Offset+r.N, p[:n]); err != nil {
				r.Bad = err.Error()
				return nil
			}
			r.N += int64(n)
			if a.Pace > 0 && r.N > rest {
				time.Sleep(a.Pace)
				rest = r.N + 1<<20
			}
		}
		if a.Flags&unix.MSG_PEEK != 0 && n > 0 {
			return nil
		}
	}
	return nil
}

// Splice moves N bytes of the stream from the socket through a pipe with
// splice(2), and checks them, or as many as come within Wait.
func (Sys) Splice(a IOArgs, r *Result) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	buf := make([]byte, 64<<10)
	for deadline := time.Now().Add(a.Wait); r.N < a.N; {
		n, err := unix.Splice(a.FD, nil, pipe[1], nil, int(min(a.N-r.N, 64<<10)), unix.SPLICE_F_NONBLOCK)
		switch errno := errnoOf(err); {
		case errno == unix.EAGAIN && time.Now().Before(deadline):
			if _, err := pollFor(a.FD, unix.POLLIN, time.Until(deadline)); err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // readable, yet nothing to take: not in a hot loop
			continue
		case errno != 0:
			r.Errno = errno
			return nil
		case n == 0:
			r.EOF = true
			return nil
		}
		if _, err := io.ReadFull(fdReader(pipe[0]), buf[:n]); err != nil {
			return err
		}
		if err := check(a.Stream, a.Offset+r.N, buf[:n]); err != nil {
			r.Bad = err.Error()
			return nil
		}
		r.N += n
	}
	return nil
}

type fdReader int

func (fd fdReader) Read(p []byte) (int, error) { return unix.Read(int(fd), p) }

// Set sets an integer socket option.
func (Sys) Set(a IOArgs, r *Result) error {
	r.Errno = errnoOf(unix.SetsockoptInt(a.FD, a.Level, a.Name, a.Value))
	return nil
}

// Map maps a page for TCP_ZEROCOPY_RECEIVE.
func (Sys) Map(a IOArgs, r *Result) error {
	_, err := unix.Mmap(a.FD, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	r.Errno = errnoOf(err)
	return nil
}

// Poll waits for events.
func (Sys) Poll(a IOArgs, r *Result) (err error) {
	r.Events, err = pollFor(a.FD, a.Events, a.Wait)
	return err
}

// Shutdown closes one direction.
func (Sys) Shutdown(a IOArgs, r *Result) error {
	r.Errno = errnoOf(unix.Shutdown(a.FD, a.Value))
	return nil
}

// Close closes the socket.
func (Sys) Close(a IOArgs, r *Result) error {
	r.Errno = errnoOf(unix.Close(a.FD))
	return nil
}

// Linger sets SO_LINGER to Value seconds.
func (Sys) Linger(a IOArgs, _ *Result) error {
	return unix.SetsockoptLinger(a.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(a.Value)})
}

// Timeout sets SO_SNDTIMEO or SO_RCVTIMEO.
func (Sys) Timeout(a IOArgs, _ *Result) error {
	tv := unix.NsecToTimeval(a.Timeval.Nanoseconds())
	return unix.SetsockoptTimeval(a.FD, unix.SOL_SOCKET, a.Name, &tv)
}

// SockErr takes the socket's pending error.
func (Sys) SockErr(a IOArgs, r *Result) error {
	code, err := unix.GetsockoptInt(a.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	r.Errno = unix.Errno(code)
	return err
}

// TCPInfo says whether the SYN carried data.
func (Sys) TCPInfo(a IOArgs, r *Result) error {
	const synData = 32 // TCPI_OPT_SYN_DATA
	info, err := unix.GetsockoptTCPInfo(a.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil {
		r.Syndata = info.Options&synData != 0
	}
	return err
}

// TCPStates counts the agent's namespace's TCP sockets in a state, as /proc/net/tcp
// numbers them; a half-open connection is in 03.
func (Sys) TCPStates(state string, r *Result) error {
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile("/proc/self/net/" + file)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == state {
				r.Value++
			}
		}
	}
	return nil
}

// NetStat reads a counter of the agent's namespace, as nstat names it.
func (Sys) NetStat(name string, r *Result) error {
	b, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		values := strings.Fields(lines[i+1])
		for j, n := range strings.Fields(lines[i]) {
			if n == name {
				_, err := fmt.Sscan(values[j], &r.Value)
				return err
			}
		}
	}
	return fmt.Errorf("no counter %s", name)
}
