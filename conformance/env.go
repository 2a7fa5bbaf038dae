// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/kernel"
)

// Env is what a case has to work with: it runs in a worker process that holds
// both ends of its connections.
type Env struct {
	Mode        Mode
	Connections int // how many the loops open

	config   workerConfig
	patience time.Duration // bound of each wait for something that must come
	quiet    time.Duration // how long to look for what must not come
	say      func(string)
	// stopAgent ends what shunt has in user space, for good: only for the last cases.
	stopAgent func()
	mu        sync.Mutex // of fds
	fds       map[int]bool
	children  map[int]bool
	streams   uint64
}

// setupError ends a case that could not be carried out.
type setupError struct{ error }

// Say adds a line to the observation.
func (e *Env) Say(what string, v any) { e.say(fmt.Sprintf("%s: %v", what, v)) }

func (e *Env) must(err error, what string) {
	if err != nil {
		panic(setupError{fmt.Errorf("%s: %w", what, err)})
	}
}

// run carries out a case; whatever it leaves open is closed.
func (e *Env) run(c Case) {
	defer func() {
		for pid := range e.children {
			unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // it may have ended
			e.reap(pid)
		}
		for fd := range e.fds {
			unix.Close(fd) //nolint:errcheck // nobody looks at it any more
		}
		if r := recover(); r != nil {
			var setup setupError
			if err, ok := r.(error); ok && errors.As(err, &setup) {
				e.say(broken + setup.Error())
				return
			}
			e.say(broken + fmt.Sprint(r))
		}
	}()
	c.Run(e)
}

func (e *Env) own(fd int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fds[fd] = true
	return fd
}

func (e *Env) closeFD(fd int) error {
	e.mu.Lock()
	delete(e.fds, fd)
	e.mu.Unlock()
	return unix.Close(fd)
}

// errname is empty for no error.
func errname(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		if errno == 0 {
			return "ok"
		}
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
		return fmt.Sprintf("errno %d", int(errno))
	}
	return err.Error()
}

// moved is the result of a call that moves bytes.
func moved(n int, err error) string {
	if err != nil {
		return errname(err)
	}
	return fmt.Sprintf("%d bytes", n)
}

// done is the result of a call that only succeeds or fails.
func done(err error) string {
	if err == nil {
		return "ok"
	}
	return errname(err)
}

const (
	period   = 1048573 // a prime: pieces of round sizes never fall on the same bytes again
	maxPiece = 1000000
)

var noise = func() []byte {
	r := rand.New(rand.NewPCG(7, 77))
	b := make([]byte, period)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return append(b, b...) // twice: a piece may start anywhere
}()

// piece is the part of a stream at offset; n is at most maxPiece.
func piece(stream uint64, offset int64, n int) []byte {
	at := (stream*99991 + uint64(offset)) % period
	return noise[at : at+uint64(n)]
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func portOf(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, errors.New("getsockname: no IP address")
}

// listener is where the server's ends come from.
type listener struct {
	e    *Env
	fd   int
	addr netip.AddrPort
}

// socket makes a TCP socket of the case's mode in the calling thread's namespace.
func (e *Env) socket(ip netip.Addr, protocol int) (int, error) {
	family, kind := unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC
	if ip.Is4() {
		family = unix.AF_INET
	}
	if e.Mode != Blocking {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind, protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, nil
}

// listen opens a listener in the server's namespace; prepare may be nil.
func (e *Env) listen(backlog int, prepare func(fd int) error) *listener {
	return e.listenOn(e.config.ServerNetns, netip.AddrPortFrom(e.config.V4, 0), unix.IPPROTO_TCP, backlog, prepare)
}

// in runs something in a network namespace; empty: the worker's own.
func (e *Env) in(ns string, fn func() error) error {
	if ns == "" {
		return fn()
	}
	return kernel.InNetns(ns, fn)
}

func (e *Env) listenOn(ns string, addr netip.AddrPort, protocol, backlog int, prepare func(fd int) error) *listener {
	l := &listener{e: e}
	err := e.in(ns, func() error {
		fd, err := e.socket(addr.Addr(), protocol)
		if err != nil {
			return err
		}
		l.fd = e.own(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
		if prepare != nil {
			if err := prepare(fd); err != nil {
				return err
			}
		}
		if err := unix.Bind(fd, sockaddr(addr)); err != nil {
			return fmt.Errorf("bind to %v: %w", addr, err)
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		port, err := portOf(fd)
		l.addr = netip.AddrPortFrom(addr.Addr(), port)
		return err
	})
	e.must(err, "open a listener")
	return l
}

// dial connects a client's end; its other end is not there yet.
func (e *Env) dial(l *listener, prepare func(fd int) error) *Sock {
	return e.dialFrom("", l.addr, unix.IPPROTO_TCP, prepare)
}

func (e *Env) dialFrom(ns string, to netip.AddrPort, protocol int, prepare func(fd int) error) *Sock {
	var fd int
	err := e.in(ns, func() (err error) {
		fd, err = e.socket(to.Addr(), protocol)
		return err
	})
	e.must(err, "open the client's socket")
	s := e.sock("client", fd)
	if prepare != nil {
		e.must(prepare(fd), "prepare the client's socket")
	}
	s.connect(to)
	return s
}

func (s *Sock) connect(to netip.AddrPort) {
	e := s.e
	err := unix.Connect(s.fd, sockaddr(to))
	if errors.Is(err, unix.EINPROGRESS) {
		if s.poll(unix.POLLOUT, e.patience)&unix.POLLOUT == 0 {
			e.must(unix.ETIMEDOUT, "connect")
		}
		var code int
		code, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
	}
	e.must(err, "connect")
}

func (l *listener) accept() *Sock {
	e := l.e
	flags := unix.SOCK_CLOEXEC
	if e.Mode != Blocking {
		flags |= unix.SOCK_NONBLOCK
	}
	for deadline := time.Now().Add(e.patience); ; {
		p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds()))); err != nil && !errors.Is(err, unix.EINTR) {
			e.must(err, "wait for a connection")
		}
		if p[0].Revents == 0 && time.Now().After(deadline) {
			e.must(unix.ETIMEDOUT, "accept")
		}
		fd, _, err := unix.Accept4(l.fd, flags)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		e.must(err, "accept")
		return e.sock("server", fd)
	}
}

func (l *listener) close() {
	l.e.closeFD(l.fd) //nolint:errcheck // nobody looks at it any more
}

// pairOn makes a connection through a listener.
func (l *listener) pair() (client, server *Sock) {
	client = l.e.dial(l, nil)
	return couple(client, l.accept())
}

// pair makes a connection.
func (e *Env) pair() (client, server *Sock) {
	l := e.listen(16, nil)
	defer l.close()
	return l.pair()
}

// settled is a connection that is on the short path, if its world has one: both
// readers were seen, the first bytes are through.
func (e *Env) settled() (client, server *Sock) {
	client, server = e.pair()
	settle(client, server)
	return client, server
}

func settle(client, server *Sock) {
	for range 4 {
		ping(client, server)
	}
}

func ping(client, server *Sock) {
	for _, way := range [][2]*Sock{{client, server}, {server, client}} {
		if r := way[0].write(100); r != "100 bytes" {
			panic(setupError{fmt.Errorf("the first messages: %s writes %s", way[0].who, r)})
		}
		if r := way[1].read(100); r != "100 bytes" {
			panic(setupError{fmt.Errorf("the first messages: %s reads %s", way[1].who, r)})
		}
	}
}

// Sock is one end of a connection.
type Sock struct {
	e        *Env
	who      string
	fd       int
	epoll    int    // edge mode
	stream   uint64 // what it sends
	incoming uint64 // what it receives
	sent     int64
	got      int64
}

func (e *Env) sock(who string, fd int) *Sock {
	s := &Sock{e: e, who: who, fd: e.own(fd), epoll: -1}
	e.must(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), "TCP_NODELAY")
	if e.Mode == Edge {
		s.epoll = e.epollOn(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLET)
	}
	return s
}

func (e *Env) epollOn(fd int, events uint32) int {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	e.must(err, "epoll")
	e.own(ep)
	e.must(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}), "epoll")
	return ep
}

// couple gives two ends streams that no others of the case have.
func couple(client, server *Sock) (*Sock, *Sock) {
	e := client.e
	e.streams += 2
	client.stream, server.stream = e.streams, e.streams+1
	client.incoming, server.incoming = server.stream, client.stream
	return client, server
}

// wait is for a call that said EAGAIN; false: nothing came.
func (s *Sock) wait(events int16) bool {
	if s.epoll < 0 {
		return s.poll(events, s.e.patience) != 0
	}
	for deadline := time.Now().Add(s.e.patience); ; {
		if got := epollWait(s.epoll, time.Until(deadline)); got&(uint32(events)|unix.EPOLLERR|unix.EPOLLHUP|unix.EPOLLRDHUP) != 0 {
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
	}
}

// epollWait is one wait on an epoll of one descriptor.
func epollWait(ep int, wait time.Duration) uint32 {
	var got [1]unix.EpollEvent
	for deadline := time.Now().Add(wait); ; {
		n, err := unix.EpollWait(ep, got[:], int(max(0, time.Until(deadline).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return 0
		}
		return got[0].Events
	}
}

// poll is poll(2) on one end.
func (s *Sock) poll(events int16, wait time.Duration) int16 {
	for deadline := time.Now().Add(wait); ; {
		p := []unix.PollFd{{Fd: int32(s.fd), Events: events}}
		_, err := unix.Poll(p, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return p[0].Revents
		}
	}
}

// events says what poll reports now, or soon.
func (s *Sock) events(want int16) string {
	all := int16(unix.POLLIN | unix.POLLOUT | unix.POLLRDHUP | unix.POLLPRI)
	if want != 0 {
		for deadline := time.Now().Add(s.e.patience); s.poll(want, time.Until(deadline))&want == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // something else is there: do not spin
		}
	}
	return eventNames(s.poll(all, 0))
}

func eventNames(events int16) string {
	var names []string
	for _, e := range []struct {
		bit  int16
		name string
	}{
		{unix.POLLIN, "IN"}, {unix.POLLPRI, "PRI"}, {unix.POLLOUT, "OUT"}, {unix.POLLERR, "ERR"},
		{unix.POLLHUP, "HUP"}, {unix.POLLRDHUP, "RDHUP"},
	} {
		if events&e.bit != 0 {
			names = append(names, e.name)
		}
	}
	return strings.Join(names, "|")
}

// arrived waits until n bytes are there to peek at; for what needs more than a
// byte to be there. False: they did not come.
func (s *Sock) arrived(n int) bool {
	buf := make([]byte, n)
	for deadline := time.Now().Add(s.e.patience); ; {
		got, _, err := unix.Recvfrom(s.fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == nil && got >= n {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// next is the part of this end's stream that it sends next.
func (s *Sock) next(n int) []byte {
	b := piece(s.stream, s.sent, n)
	s.sent += int64(n)
	return b
}

// match says what received bytes are.
func (s *Sock) match(b []byte) string {
	want := piece(s.incoming, s.got, len(b))
	from := s.got
	s.got += int64(len(b))
	if bytes.Equal(b, want) {
		return fmt.Sprintf("%d bytes", len(b))
	}
	return fmt.Sprintf("%d bytes that are not the stream's at %d", len(b), from)
}

// write sends n bytes of this end's stream, in calls of at most 64 KiB.
func (s *Sock) write(n int) string { return s.writeIn(n, 64<<10) }

func (s *Sock) writeIn(n, chunk int) string {
	total := 0
	for total < n {
		m, err := unix.SendmsgN(s.fd, piece(s.stream, s.sent, min(chunk, n-total)), nil, nil, unix.MSG_NOSIGNAL)
		if err == nil {
			total += m
			s.sent += int64(m)
			continue
		}
		if errors.Is(err, unix.EAGAIN) && s.e.Mode != Blocking {
			if s.wait(unix.POLLOUT) {
				continue
			}
			return fmt.Sprintf("%d bytes, then no room", total)
		}
		if total == 0 {
			return errname(err)
		}
		return fmt.Sprintf("%d bytes, %s", total, errname(err))
	}
	return fmt.Sprintf("%d bytes", total)
}

const everything = 1 << 30

// read receives n bytes, or up to the end, and checks them.
func (s *Sock) read(n int) string { return s.readWith(n, 64<<10, s.recv) }

func (s *Sock) recv(b []byte) (int, error) {
	n, _, err := unix.Recvfrom(s.fd, b, 0)
	return n, err
}

// readWith reads with any call that takes a buffer.
func (s *Sock) readWith(n, chunk int, call func([]byte) (int, error)) string {
	total, buf := 0, make([]byte, min(n, chunk))
	for total < n {
		m, err := call(buf[:min(len(buf), n-total)])
		switch {
		case err == nil && m == 0:
			return fmt.Sprintf("%d bytes, EOF", total)
		case err == nil:
			if r := s.match(buf[:m]); r != fmt.Sprintf("%d bytes", m) {
				return fmt.Sprintf("%d bytes, then %s", total, r)
			}
			total += m
		case errors.Is(err, unix.EAGAIN) && s.e.Mode != Blocking:
			if !s.wait(unix.POLLIN) {
				return fmt.Sprintf("%d bytes, then nothing came", total)
			}
		case total == 0:
			return errname(err)
		default:
			return fmt.Sprintf("%d bytes, %s", total, errname(err))
		}
	}
	return fmt.Sprintf("%d bytes", total)
}

func (s *Sock) shutdown(how int) string { return done(unix.Shutdown(s.fd, how)) }

func (s *Sock) close() string {
	if s.epoll >= 0 {
		s.e.closeFD(s.epoll) //nolint:errcheck // an epoll
	}
	return done(s.e.closeFD(s.fd))
}

func (s *Sock) option(level, name, value int) string {
	return done(unix.SetsockoptInt(s.fd, level, name, value))
}

// drained waits until the peer's kernel has all that was written.
func (s *Sock) drained() {
	for deadline := time.Now().Add(s.e.patience); time.Now().Before(deadline); time.Sleep(500 * time.Microsecond) {
		if n, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ); err != nil || n == 0 {
			return
		}
	}
}

// fill writes until there is no room, or most bytes are gone.
func (s *Sock) fill(chunk, most int) (int, string) {
	total := 0
	for total < most {
		n, err := unix.SendmsgN(s.fd, piece(s.stream, s.sent, chunk), nil, nil, unix.MSG_NOSIGNAL)
		if err != nil {
			return total, errname(err)
		}
		total += n
		s.sent += int64(n)
	}
	return total, "never"
}

// setBlocking changes the mode of an open socket.
func (s *Sock) setBlocking(on bool) { s.e.must(unix.SetNonblock(s.fd, !on), "O_NONBLOCK") }

// transfer moves n bytes with a writer on a thread of its own.
func (e *Env) transfer(from, to *Sock, n, chunk int) {
	w := e.async(func() string { return from.writeIn(n, chunk) })
	e.Say(to.who+" reads", to.read(n))
	e.Say(from.who+" wrote", w.wait())
}

// ask is an ioctl that answers with an int.
func (s *Sock) ask(request uint) string {
	n, err := unix.IoctlGetInt(s.fd, request)
	return moved(n, err)
}

// ended tells what an end sees from now on: what is left to read, then the end,
// twice, as an error is reported once; then what writing gives, and what poll says.
func (e *Env) ended(s *Sock) {
	e.Say(s.who+" reads", s.read(everything))
	e.Say(s.who+" reads again", s.read(everything))
	e.Say(s.who+" writes", s.write(10))
	s.poll(0, 4*e.quiet) // the answer to that write, if there is one, is an error
	e.Say(s.who+" polls", s.events(unix.POLLIN|unix.POLLOUT|unix.POLLRDHUP))
	code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	e.Say(s.who+" asks SO_ERROR", moved(code, err)+" "+unix.ErrnoName(unix.Errno(code)))
}

// call is something that runs on a thread of its own.
type call struct {
	e      *Env
	tid    int
	result chan string
}

func (e *Env) async(fn func() string) *call {
	c := &call{e: e, result: make(chan string, 1)}
	tid := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: its signals and namespace are its own
		tid <- unix.Gettid()
		defer func() {
			if r := recover(); r != nil {
				c.result <- fmt.Sprint(broken, r)
			}
		}()
		c.result <- fn()
	}()
	c.tid = <-tid
	return c
}

func (c *call) wait() string {
	t := time.NewTimer(c.e.patience)
	defer t.Stop()
	select {
	case r := <-c.result:
		return r
	case <-t.C:
		return "does not return"
	}
}

// asleep waits until the thread sleeps in the kernel.
func (c *call) asleep() {
	seen := 0
	for deadline := time.Now().Add(c.e.patience); seen < 5 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", c.tid))
		if err != nil {
			return
		}
		if _, rest, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(rest, "S") {
			seen++
		} else {
			seen = 0
		}
	}
}

// tally counts equal results, so that a loop of any length is one line.
type tally map[string]int

func (t tally) String() string {
	if len(t) == 1 {
		for what := range t {
			return "every time " + what
		}
	}
	var lines []string
	for what := range t { // how often differs from run to run; that it happened does not
		lines = append(lines, what)
	}
	slices.Sort(lines)
	return "sometimes " + strings.Join(lines, ", sometimes ")
}
