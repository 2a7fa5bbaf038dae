// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	manyConnections = 64
	// Calls in one direction before the loop looks at the other: what an event
	// loop does that must not starve anybody.
	turn = 8
)

// window measures what is counted between the warm-up and the end.
type window struct {
	warmup, duration time.Duration
	start            time.Time
	from             time.Duration
	base             uint64
	open             bool
}

// over tells whether the window has been seen to its end, at a moment when n
// was counted; rate and length are those of the window then.
func (w *window) over(n uint64) (rate, seconds float64, over bool) {
	if w.start.IsZero() {
		w.start = time.Now()
	}
	now := time.Since(w.start)
	switch {
	case now < w.warmup:
		return 0, 0, false
	case !w.open:
		w.open, w.from, w.base = true, now, n
		return 0, 0, false
	case now < w.warmup+w.duration || n == w.base:
		return 0, 0, false
	}
	seconds = (now - w.from).Seconds()
	return float64(n-w.base) / seconds, seconds, true
}

// line is one connection in an event loop of many.
type line struct {
	fd      int
	out     []byte // what is still to be sent of the present message
	msg, in []byte
	got     int
	counter uint64
	waiting bool // for EPOLLOUT too
	done    bool
}

// loop is an epoll loop over connections that carry one message at a time.
type loop struct {
	epoll    int
	lines    []*line
	deadline time.Duration
}

func newLoop(deadline time.Duration) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &loop{epoll: fd, deadline: deadline}, nil
}

func (l *loop) add(fd, size int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("TCP_NODELAY: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(l.lines))}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	l.lines = append(l.lines, &line{fd: fd, msg: make([]byte, size), in: make([]byte, size)})
	return nil
}

// push sends what is left of a line's message, and waits for room if it must.
func (l *loop) push(i int) error {
	c := l.lines[i]
	for len(c.out) > 0 {
		n, errno := rawTransfer(unix.SYS_SENDTO, c.fd, c.out, unix.MSG_NOSIGNAL)
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			return l.watch(i, true)
		}
		if errno != 0 {
			return fmt.Errorf("send: %w", errno)
		}
		c.out = c.out[n:]
	}
	return l.watch(i, false)
}

func (l *loop) watch(i int, out bool) error {
	c := l.lines[i]
	if c.waiting == out {
		return nil
	}
	c.waiting = out
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
	if out {
		ev.Events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, c.fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// pull reads once; complete tells that a whole message is there and right.
func (l *loop) pull(i int) (complete, eof bool, err error) {
	c := l.lines[i]
	n, errno := rawTransfer(unix.SYS_RECVFROM, c.fd, c.in[c.got:], 0)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return false, false, nil
	case errno != 0:
		return false, false, fmt.Errorf("recv: %w", errno)
	case n == 0 && c.got == 0:
		return false, true, nil
	case n == 0:
		return false, false, fmt.Errorf("%w after %d of %d bytes", errClosed, c.got, len(c.in))
	}
	if c.got += n; c.got < len(c.in) {
		return false, false, nil
	}
	c.got = 0
	err = check(c.in, c.counter)
	c.counter++
	return err == nil, false, err
}

// run handles events until handle says that it is over.
func (l *loop) run(handle func(i int) (over bool, err error)) error {
	var events [manyConnections]unix.EpollEvent
	for {
		n, err := unix.EpollWait(l.epoll, events[:], int(l.deadline.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("nothing happened for %v", l.deadline)
		}
		for _, ev := range events[:n] {
			i := int(ev.Fd)
			if ev.Events&unix.EPOLLOUT != 0 {
				// Whose peer has left is handled below.
				if err := l.push(i); err != nil && !left(err) {
					return err
				}
			}
			if ev.Events&^unix.EPOLLOUT == 0 {
				continue
			}
			if over, err := handle(i); over || err != nil {
				return err
			}
		}
	}
}

// left tells whether an error means that the peer has gone.
func left(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, errClosed)
}

// pingMany keeps one message on its way on each of many connections.
func (p *peer) pingMany(r *PeerResult) error {
	l, err := newLoop(p.timeout)
	if err != nil {
		return err
	}
	for range manyConnections {
		s, err := connect(p.addr, false, p.timeout)
		if err != nil {
			return err
		}
		if err := unix.Close(s.epoll); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		if err := l.add(s.fd, p.size); err != nil {
			return err
		}
	}
	ask := func(i int) error {
		c := l.lines[i]
		mark(c.msg, c.counter)
		c.out = c.msg
		return l.push(i)
	}
	for i := range l.lines {
		if err := ask(i); err != nil {
			return err
		}
	}
	w := window{warmup: p.warmup, duration: p.duration}
	var answers uint64
	return l.run(func(i int) (bool, error) {
		complete, eof, err := l.pull(i)
		if eof {
			err = errClosed
		}
		if err != nil || !complete {
			return false, err
		}
		answers++
		rate, seconds, over := w.over(answers)
		if over {
			r.Rate, r.Seconds, r.Verified = rate, seconds, answers*uint64(p.size)
			return true, nil
		}
		return false, ask(i)
	})
}

// echoMany answers on many connections until all are closed.
func (p *peer) echoMany(listener int) error {
	l, err := newLoop(p.timeout)
	if err != nil {
		return err
	}
	for range manyConnections {
		if err := pollFor(listener, unix.POLLIN, p.timeout); err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := l.add(fd, p.size); err != nil {
			return err
		}
	}
	open := manyConnections
	return l.run(func(i int) (bool, error) {
		c := l.lines[i]
		if c.done { // an event from before
			return false, nil
		}
		if len(c.out) > 0 { // the client's next message cannot be before its answer
			return l.gone(i, &open)
		}
		complete, eof, err := l.pull(i)
		// The client leaves with messages on their way.
		if eof || left(err) {
			return l.leave(i, &open)
		}
		if err != nil || !complete {
			return false, err
		}
		copy(c.msg, c.in)
		c.out = c.msg
		if err := l.push(i); left(err) {
			return l.leave(i, &open)
		} else if err != nil {
			return false, err
		}
		return false, nil
	})
}

// gone looks whether a client that is owed the rest of an answer has left.
func (l *loop) gone(i int, open *int) (over bool, err error) {
	var b [1]byte
	_, errno := rawTransfer(unix.SYS_RECVFROM, l.lines[i].fd, b[:], unix.MSG_PEEK)
	if errno == unix.EAGAIN {
		return false, nil
	}
	return l.leave(i, open)
}

func (l *loop) leave(i int, open *int) (over bool, err error) {
	c := l.lines[i]
	if !c.done {
		c.done, c.waiting, c.out = true, false, nil
		*open--
		if err := unix.Close(c.fd); err != nil {
			return false, fmt.Errorf("close: %w", err)
		}
	}
	return *open == 0, nil
}

// setUp connects, exchanges one message and closes, again and again.
func (p *peer) setUp(r *PeerResult) error {
	sa, family, err := address(p.addr)
	if err != nil {
		return err
	}
	out, in := make([]byte, p.size), make([]byte, p.size)
	w := window{warmup: p.warmup, duration: p.duration}
	for counter := uint64(0); ; counter++ {
		if rate, seconds, over := w.over(counter); over {
			r.Rate, r.Seconds, r.Verified = rate, seconds, counter*uint64(p.size)
			counter |= lastMessage
		}
		fd, err := openSocket(family, false, p.timeout)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: %w", err)
		}
		mark(out, counter)
		if err := p.sendOn(fd, out); err != nil {
			return err
		}
		if err := p.receiveOn(fd, in); err != nil {
			return err
		}
		if err := check(in, counter); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		if counter&lastMessage != 0 {
			return nil
		}
	}
}

// serveSetUps answers one message on each connection, until the last one.
func (p *peer) serveSetUps(listener int) error {
	msg := make([]byte, p.size)
	for last := false; !last; {
		if err := pollFor(listener, unix.POLLIN, p.timeout); err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := p.receiveOn(fd, msg); err != nil {
			return err
		}
		last = binary.LittleEndian.Uint64(msg)&lastMessage != 0
		if err := p.sendOn(fd, msg); err != nil {
			return err
		}
		if err := pollFor(fd, unix.POLLIN, p.timeout); err != nil { // the client closes first
			return err
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
	}
	return nil
}

func (p *peer) sendOn(fd int, b []byte) error {
	for len(b) > 0 {
		n, errno := rawTransfer(unix.SYS_SENDTO, fd, b, unix.MSG_NOSIGNAL)
		if errno == unix.EAGAIN {
			if err := pollFor(fd, unix.POLLOUT, p.timeout); err != nil {
				return err
			}
			continue
		}
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("send: %w", errno)
		}
		b = b[n:]
	}
	return nil
}

func (p *peer) receiveOn(fd int, b []byte) error {
	for len(b) > 0 {
		if err := pollFor(fd, unix.POLLIN, p.timeout); err != nil {
			return err
		}
		n, errno := rawTransfer(unix.SYS_RECVFROM, fd, b, 0)
		if errno == unix.EAGAIN || errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("recv: %w", errno)
		}
		if n == 0 {
			return errClosed
		}
		b = b[n:]
	}
	return nil
}

// both streams in both directions at once, in one event loop at either end. The
// client's last message makes the server send its own last one; then the client
// asks for the server's account. The rate is what both received.
func (p *peer) both(s *socket, r *PeerResult) error {
	msg, buf := make([]byte, p.size), make([]byte, readBuffer)
	out := msg[:0]
	v := verifier{size: p.size}
	w := window{warmup: p.warmup, duration: p.duration}
	var counter uint64
	var rate float64
	ending, ended := false, false // the last message is due; it has been sent
	client := r != nil
	for !v.done || !ended {
		moved := false
		for range turn {
			if len(out) == 0 {
				if ended {
					break
				}
				if ending {
					counter |= lastMessage
					ended = true
				}
				mark(msg, counter)
				counter++
				out = msg
			}
			n, errno := rawTransfer(unix.SYS_SENDTO, s.fd, out, unix.MSG_NOSIGNAL)
			if errno == unix.EAGAIN || errno == unix.EINTR {
				break
			}
			if errno != 0 {
				return fmt.Errorf("send: %w", errno)
			}
			out, moved = out[n:], true
		}
		for range turn {
			if v.done {
				break
			}
			n, errno := rawTransfer(unix.SYS_RECVFROM, s.fd, buf, 0)
			if errno == unix.EAGAIN || errno == unix.EINTR {
				break
			}
			if errno != 0 {
				return fmt.Errorf("recv: %w", errno)
			}
			if n == 0 {
				return fmt.Errorf("%w after %d bytes of a stream", errClosed, v.total)
			}
			if err := v.add(buf[:n]); err != nil {
				return err
			}
			moved = true
		}
		if got, seconds, over := w.over(v.total); over && rate == 0 {
			rate = got
			if client {
				r.Seconds = seconds
			}
		}
		// The server began to count a little later.
		if client && rate > 0 && time.Since(w.start) >= 2*p.warmup+p.duration {
			ending = true
		}
		if !client && v.done {
			ending = true
		}
		if ended && len(out) > 0 || !ended {
			if !moved {
				if err := s.wait(unix.EPOLLIN | unix.EPOLLOUT); err != nil {
					return err
				}
			}
		} else if !v.done && !moved {
			if err := s.wait(unix.EPOLLIN); err != nil {
				return err
			}
		}
	}
	if err := s.sendAll(out); err != nil { // of the last message
		return err
	}
	if rate == 0 { // off the CPU for the whole window, on a busy machine
		rate = float64(v.total) / time.Since(w.start).Seconds()
	}
	var account [16]byte
	if !client {
		if _, err := s.receiveFull(buf[:1]); err != nil {
			return fmt.Errorf("the client's question: %w", err)
		}
		binary.LittleEndian.PutUint64(account[:], uint64(rate))
		binary.LittleEndian.PutUint64(account[8:], v.total)
		if err := s.sendAll(account[:]); err != nil {
			return err
		}
		if n, err := s.receive(buf); err != nil || n != 0 {
			return fmt.Errorf("after the end: %d bytes, %w", n, err)
		}
		return nil
	}
	if err := s.sendAll([]byte{'?'}); err != nil {
		return err
	}
	if _, err := s.receiveFull(account[:]); err != nil {
		return fmt.Errorf("the server's account: %w", err)
	}
	r.Rate = rate + float64(binary.LittleEndian.Uint64(account[:]))
	r.Verified = v.total + binary.LittleEndian.Uint64(account[8:])
	return nil
}
