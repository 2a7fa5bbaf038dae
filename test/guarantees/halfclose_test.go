// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// The half-close loop: connect, send N bytes in chunks, shutdown(SHUT_WR), read
// the reply until EOF; every byte of both directions is checked.

const (
	loopSeed    = 20260731
	loopLargest = 4 << 20
	headerSize  = 16
	ackStream   = 1 << 40
)

var loopBound = slowness * 30 * time.Second // of one connection, where nothing else is said

// LoopArgs of one end of the loop.
type LoopArgs struct {
	FD       int // the listener, at the server
	Addr     netip.AddrPort
	Blocking bool
	Conns    int
	Workers  int           // connections at once, at the client
	Wait     time.Duration // for a connection
	Bound    time.Duration // of a connection, from then on
	Tolerate int           // the client stops after this many broken connections; 0 is never
}

// LoopResult of one end of the loop.
type LoopResult struct {
	Clean  int
	Broken int
	Lost   int      // of the broken, those that ended in a reset or without an answer
	Bytes  int64    // checked
	Sized  [3]int   // clean connections of up to 1 KiB, up to 64 KiB, larger
	First  []string // the first few failures
}

// shape is what connection id does; both ends derive it from the id.
type shape struct {
	id    uint64
	n     int64
	chunk int
	// ping: the server acknowledges the header before the client goes on, so both
	// are seen in recv and the short path is open. echo: the server answers as it
	// reads, else when it has read all.
	ping, echo bool
}

func shapeOf(id uint64) shape {
	random := rand.New(rand.NewPCG(loopSeed, id))
	n := int64(math.Exp(random.Float64() * math.Log(loopLargest+1))) // log-uniform
	chunk := int64(math.Exp(random.Float64() * math.Log(64<<10+1)))
	s := shape{id: id, n: max(1, n), ping: random.IntN(2) == 0, echo: random.IntN(2) == 0 && n <= 64<<10}
	s.chunk = int(max(1, min(64<<10, max(chunk, s.n/256)))) // bounds the calls of a large one
	return s
}

// conversation is one end of one connection.
type conversation struct {
	fd    int
	bound time.Duration
	bytes int64
	buf   []byte
}

func (c *conversation) wait(events int16) error {
	got, err := pollFor(c.fd, events, c.bound)
	if err == nil && got == 0 {
		err = fmt.Errorf("nothing for %v: %w", c.bound, unix.ETIMEDOUT)
	}
	return err
}

func (c *conversation) write(p []byte, blocking bool) error {
	for len(p) > 0 {
		n, err := unix.SendmsgN(c.fd, p, nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && !blocking:
			if err := c.wait(unix.POLLOUT); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		case err != nil:
			return fmt.Errorf("send: %w", err)
		default:
			p = p[n:]
		}
	}
	return nil
}

// read returns 0 at the end of the stream.
func (c *conversation) read(limit int, blocking bool) ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf[:limit], 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && !blocking:
			if err := c.wait(unix.POLLIN); err != nil {
				return nil, fmt.Errorf("recv: %w", err)
			}
		case err != nil:
			return nil, fmt.Errorf("recv: %w", err)
		default:
			return c.buf[:n], nil
		}
	}
}

// readSome is read where the stream must not end.
func (c *conversation) readSome(limit int, blocking bool) ([]byte, error) {
	p, err := c.read(limit, blocking)
	if err == nil && len(p) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

func (c *conversation) writeStream(stream uint64, from, n int64, chunk int, blocking bool) error {
	for at := int64(0); at < n; {
		p := piece(stream, from+at, int(min(int64(chunk), n-at)))
		if err := c.write(p, blocking); err != nil {
			return fmt.Errorf("at %d of %d: %w", at, n, err)
		}
		at += int64(len(p))
	}
	return nil
}

func (c *conversation) client(s shape, blocking bool) error {
	header := binary.LittleEndian.AppendUint64(make([]byte, 0, headerSize), s.id)
	header = binary.LittleEndian.AppendUint64(header, uint64(s.n))
	if err := c.write(header, blocking); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if s.ping {
		ack, err := c.readSome(1, blocking)
		if err == nil {
			err = check(2*s.id+1, ackStream, ack)
		}
		if err != nil {
			return fmt.Errorf("acknowledgement: %w", err)
		}
	}
	if err := c.writeStream(2*s.id, 0, s.n, s.chunk, blocking); err != nil {
		return err
	}
	if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return c.readAll(2*s.id+1, s, blocking, nil)
}

// readAll reads s.n bytes and then the end of the stream.
func (c *conversation) readAll(stream uint64, s shape, blocking bool, each func(from, n int64) error) error {
	for at := int64(0); ; {
		p, err := c.read(max(s.chunk, int(s.n/256)), blocking)
		if err != nil {
			return fmt.Errorf("at %d of %d: %w", at, s.n, err)
		}
		if len(p) == 0 {
			if at != s.n {
				return fmt.Errorf("short: end of stream at %d of %d", at, s.n)
			}
			return nil
		}
		if err := check(stream, at, p); err != nil {
			return err
		}
		if each != nil {
			if err := each(at, int64(len(p))); err != nil {
				return err
			}
		}
		if at += int64(len(p)); at > s.n {
			return fmt.Errorf("%d bytes of %d", at, s.n)
		}
		c.bytes += int64(len(p))
	}
}

func (c *conversation) server(blocking bool) (shape, error) {
	var header []byte
	for len(header) < headerSize {
		p, err := c.readSome(headerSize-len(header), blocking)
		if err != nil {
			return shape{}, fmt.Errorf("header, at %d: %w", len(header), err)
		}
		header = append(header, p...)
	}
	s := shapeOf(binary.LittleEndian.Uint64(header))
	if n := int64(binary.LittleEndian.Uint64(header[8:])); n != s.n {
		return s, fmt.Errorf("header: connection %d with %d bytes, want %d", s.id, n, s.n)
	}
	if s.ping {
		if err := c.write(piece(2*s.id+1, ackStream, 1), blocking); err != nil {
			return s, fmt.Errorf("acknowledgement: %w", err)
		}
	}
	if s.echo {
		return s, c.readAll(2*s.id, s, blocking, func(from, n int64) error {
			return c.writeStream(2*s.id+1, from, n, s.chunk, blocking)
		})
	}
	if err := c.readAll(2*s.id, s, blocking, nil); err != nil {
		return s, err
	}
	return s, c.writeStream(2*s.id+1, 0, s.n, s.chunk, blocking)
}

// tally gathers the outcome of conversations.
type tally struct {
	mu sync.Mutex
	r  *LoopResult
}

func (t *tally) add(s shape, c *conversation, err error) (broken int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.r.Bytes += c.bytes
	if err == nil {
		t.r.Clean++
		switch {
		case s.n <= 1<<10:
			t.r.Sized[0]++
		case s.n <= 64<<10:
			t.r.Sized[1]++
		default:
			t.r.Sized[2]++
		}
		return t.r.Broken
	}
	t.r.Broken++
	for _, errno := range []unix.Errno{unix.ECONNRESET, unix.ENOTCONN, unix.EPIPE, unix.ETIMEDOUT} {
		if errors.Is(err, errno) {
			t.r.Lost++
			break
		}
	}
	if len(t.r.First) < 8 {
		t.r.First = append(t.r.First, fmt.Sprintf("connection %d (%d bytes in %d, ping %v, echo %v): %v", s.id, s.n, s.chunk, s.ping, s.echo, err))
	}
	return t.r.Broken
}

// bounded ends a conversation that takes too long, so that blocking calls need no
// timeout of their own.
func bounded(c *conversation, talk func() error) error {
	stop := time.AfterFunc(c.bound, func() { unix.Shutdown(c.fd, unix.SHUT_RDWR) }) //nolint:errcheck // it may be closed
	err := talk()
	if !stop.Stop() {
		err = fmt.Errorf("took more than %v: %w", c.bound, errors.Join(unix.ETIMEDOUT, err))
	}
	return err
}

// LoopServe is the server's side; it returns when it has served all connections.
func (Sys) LoopServe(a LoopArgs, r *LoopResult) error {
	t := tally{r: r}
	var all sync.WaitGroup
	defer all.Wait()
	for range a.Conns {
		fd, err := accept(AcceptArgs{FD: a.FD, Blocking: a.Blocking, Wait: a.Wait})
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		all.Go(func() {
			defer unix.Close(fd) //nolint:errcheck // nothing to tell
			c := &conversation{fd: fd, bound: a.Bound, buf: make([]byte, 64<<10)}
			var s shape
			err := bounded(c, func() (err error) {
				s, err = c.server(a.Blocking)
				return err
			})
			t.add(s, c, err)
		})
	}
	return nil
}

// LoopRun is the client's side.
func (Sys) LoopRun(a LoopArgs, r *LoopResult) error {
	t := tally{r: r}
	var all sync.WaitGroup
	var next atomic.Uint64
	var stop atomic.Bool
	for range a.Workers {
		all.Go(func() {
			buf := make([]byte, 64<<10)
			for !stop.Load() {
				id := next.Add(1) - 1
				if id >= uint64(a.Conns) {
					return
				}
				s, c := shapeOf(id), &conversation{bound: a.Bound, buf: buf}
				err := c.connect(a.Addr, a.Blocking, a.Wait)
				if err == nil {
					err = bounded(c, func() error { return c.client(s, a.Blocking) })
				}
				unix.Close(c.fd) //nolint:errcheck // nothing to tell
				if broken := t.add(s, c, err); a.Tolerate > 0 && broken >= a.Tolerate {
					stop.Store(true)
				}
			}
		})
	}
	all.Wait()
	return nil
}

func (c *conversation) connect(to netip.AddrPort, blocking bool, wait time.Duration) (err error) {
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if !blocking {
		kind |= unix.SOCK_NONBLOCK
	}
	if c.fd, err = unix.Socket(family(to.Addr()), kind, 0); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("TCP_NODELAY: %w", err)
	}
	err = unix.Connect(c.fd, sockaddr(to))
	if errors.Is(err, unix.EINPROGRESS) {
		var events int16
		if events, err = pollFor(c.fd, unix.POLLOUT, wait); err == nil && events == 0 {
			err = unix.ETIMEDOUT
		}
		if err == nil {
			var code int
			if code, err = unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
				err = unix.Errno(code)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// loop runs it between two agents of a world.
func loop(t *testing.T, w *world, a LoopArgs) (client, server LoopResult) {
	t.Helper()
	s, c := w.agent(nil), w.agent(nil)
	l := s.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 128, Blocking: a.Blocking})
	a.FD, a.Addr, a.Wait, a.Bound = l.fd, l.name, patience, loopBound
	serving := s.begin("LoopServe", a, &server)
	start := time.Now()
	c.begin("LoopRun", a, &client).end(slowness * 3 * time.Minute)
	t.Logf("%s: %d clean, %d broken of %d connections (≤1 KiB, ≤64 KiB, larger: %v), %d MB checked at the client, %.1f s, seed %d",
		w.name, client.Clean, client.Broken, a.Conns, client.Sized, client.Bytes>>20, time.Since(start).Seconds(), loopSeed)
	if a.Tolerate == 0 {
		serving.end(3 * patience)
	}
	return client, server
}

// loopConns is how many connections a test makes.
func loopConns(t *testing.T, normally int) int {
	if v := os.Getenv("SHUNT_HALFCLOSE"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("SHUNT_HALFCLOSE=%q: want a number", v)
		}
		return n
	}
	return normally
}

func TestHalfCloseLoop(t *testing.T) {
	for _, c := range []struct {
		name     string
		accept   []string
		blocking bool
		conns    int
		share    float64 // of the bytes that must be redirected; 0: nothing may be joined
	}{
		// Half of the connections open the short path, both ways, before they send.
		{"nonblocking", nil, false, 10000, 0.4},
		// And here the reply takes the stack: the pair leaves at the half-close.
		{"blocking with G4 accepted", []string{"G4"}, true, 10000, 0.15},
		{"blocking by default is plain", nil, true, 1000, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := accelerated(t, node.SessionOptions{Accept: c.accept})
			n := loopConns(t, c.conns)
			client, server := loop(t, w, LoopArgs{Blocking: c.blocking, Conns: n, Workers: 8})
			for end, r := range map[string]LoopResult{"client": client, "server": server} {
				if r.Clean != n || r.Broken != 0 {
					t.Errorf("%s: %d of %d clean, %d broken:", end, r.Clean, n, r.Broken)
					for _, f := range r.First {
						t.Error("  " + f)
					}
				}
			}
			if c.share == 0 {
				if s := w.stats(); s.Joined != 0 || s.Redirected.Bytes != 0 || s.NotJoined["blocking"] != uint64(n) {
					t.Errorf("blocking sockets were not all left alone: %+v", s)
				}
				return
			}
			s := w.mustCarry(uint64(n))
			share := float64(s.Redirected.Bytes) / float64(s.Redirected.Bytes+s.StackTotal().Bytes)
			t.Logf("%.0f %% of the bytes redirected; stack %v; left %v", 100*share, s.Stack, s.Left)
			if share < c.share {
				t.Errorf("only %.0f %% of the bytes were redirected, want %.0f %%", 100*share, 100*c.share)
			}
		})
	}
}

// TestHalfCloseControl: the same loop without guards breaks connections.
func TestHalfCloseControl(t *testing.T) {
	client, _ := loop(t, control(t), LoopArgs{Blocking: true, Conns: 5000, Workers: 8, Tolerate: 5})
	if client.Broken == 0 {
		t.Fatal("the control broke no connection: this loop cannot fail")
	}
	t.Logf("as it should: %q", client.First)
}

// TestHalfCloseWithUnreadBytes: a blocking reader reads what was queued when it shut
// its write side down, waits for more, and only then the FIN is acknowledged. That
// wakes it in the kernel, but must not reach it. With G4 accepted it may, which is why
// blocking sockets are not joined by default.
func TestHalfCloseWithUnreadBytes(t *testing.T) {
	const clientIP, serverIP = "10.77.7.1", "10.77.7.2"
	for _, start := range []func(*testing.T) *world{plain, acceleratedDefault} {
		w := start(t)
		t.Run(w.name, func(t *testing.T) {
			cn, sn := newVeth(t, clientIP+"/24", serverIP+"/24")
			p := dial(w.agent(cn), w.agent(sn), dialOptions{blocking: true, server: netip.MustParseAddrPort(serverIP + ":0")})
			p.ping(100)
			p.server.mustSend(1000)
			sn.neighbour(clientIP, nil) // what the server acknowledges is lost
			p.client.shutdown(unix.SHUT_WR)
			p.client.mustRecv(1000)

			var r Result
			reading := p.client.begin("Recv", IOArgs{FD: p.client.fd, Stream: p.server.stream, Offset: p.client.got, N: 500, Chunk: 500}, &r)
			select {
			case <-reading.call.Done:
				t.Fatalf("a blocking read of an empty connection returned %v", r)
			case <-time.After(quiet):
			}
			sn.neighbour(clientIP, cn)
			const finWait2 = "05"
			eventually(t, "acknowledged FIN", func() bool { return p.client.call("TCPStates", finWait2).Value > 0 })
			p.server.send(500)
			reading.end(patience)
			if r.N != 500 {
				t.Errorf("the blocking read returned %v", r)
			}
		})
		if w.session != nil {
			if n := w.stats().NotJoined["blocking"]; n != 1 {
				t.Errorf("%d connections left out as blocking, want 1", n)
			}
		}
	}
}
