// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// G1: bytes that went through the stack never come after redirected ones.

// early makes a pair whose server has unread bytes of the stack, sent before its
// socket could be joined.
type early struct {
	name string
	make func(t *testing.T, w *world) (p *pair, unread int64)
	// fails: the control, which has the server in its map by then, mixes them up.
	fails  bool
	joined uint64 // pairs of the case that shunt joins
	held   string // why it held later bytes to the stack
}

var earlyBytes = []early{
	{"sent before accept", beforeAccept, false, 1, "order"},
	{"final ACK lost", lateHandshake, true, 2, "order"},
	{"fast open", fastOpen, true, 1, ""}, // of the two: the socket is there before the handshake,
}

func beforeAccept(t *testing.T, w *world) (*pair, int64) {
	c, s := w.agent(nil), w.agent(nil)
	l := s.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 16})
	client := c.socket(SocketArgs{Family: unix.AF_INET})
	client.connect(l.name)
	p := couple(client, &end{})
	client.mustSend(1000)
	*p.server = *l.accept(false)
	p.server.peer, p.server.stream = client, client.stream+1
	return p, 1000
}

// lateHandshake is what an overflowing accept queue does: the client is connected
// and sends, the server's socket does not exist yet.
func lateHandshake(t *testing.T, w *world) (*pair, int64) {
	cn, sn := newVeth(t, "10.77.1.1/24", "10.77.1.2/24")
	c, s := w.agent(cn), w.agent(sn)
	dial(c, s, dialOptions{server: netip.MustParseAddrPort("10.77.1.2:0")}).settle() // the devices are guarded
	l := s.listen(SocketArgs{Bind: netip.MustParseAddrPort("10.77.1.2:7700"), Backlog: 16})
	client := c.socket(SocketArgs{Family: unix.AF_INET})
	holdSynAck(client, l, cn, sn, "10.77.1.1")
	holdAck(client, cn, sn, "10.77.1.1", "10.77.1.2")
	p := couple(client, &end{})
	client.mustSend(1000)
	cn.neighbour("10.77.1.2", sn)
	*p.server = *l.accept(false)
	p.server.peer, p.server.stream = client, client.stream+1
	if events := p.server.poll(unix.POLLIN, patience); events&unix.POLLIN == 0 {
		t.Fatal("the early bytes did not arrive")
	}
	return p, 1000
}

// holdSynAck begins a connection whose SYN-ACK gets lost: the server has a
// half-open one, the client none.
func holdSynAck(client, listener *end, cn, sn *netns, clientIP string) {
	client.t.Helper()
	sn.neighbour(clientIP, nil)
	if r := client.call("Connect", IOArgs{FD: client.fd, Addr: listener.name}); r.Errno != unix.EINPROGRESS {
		client.t.Fatalf("connect: %v", r)
	}
	eventually(client.t, "half-open connection", func() bool { return listener.call("TCPStates", "03").Value == 1 })
}

// holdAck lets the SYN-ACK through, but not its ACK: the client is connected, the
// server's connection still half open.
func holdAck(client *end, cn, sn *netns, clientIP, serverIP string) {
	client.t.Helper()
	cn.neighbour(serverIP, nil)
	sn.neighbour(clientIP, cn)
	r := client.call("Connected", IOArgs{FD: client.fd, Wait: patience})
	if r.Errno != 0 {
		client.t.Fatalf("connect: %v", r)
	}
	client.name = r.Name
}

func fastOpen(t *testing.T, w *world) (*pair, int64) {
	ns := newNetns(t)
	ns.sysctl("net/ipv4/tcp_fastopen", "3")
	c, s := w.agent(ns), w.agent(ns)
	l := s.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 16, FastOpen: true})

	open := func(n int64) (*pair, int64) {
		client := c.socket(SocketArgs{Family: unix.AF_INET})
		p := couple(client, &end{})
		r := client.call("FastOpen", IOArgs{FD: client.fd, Addr: l.name, Stream: client.stream, N: n})
		if r.Errno != 0 && r.Errno != unix.EINPROGRESS {
			t.Fatalf("fast open: %v", r)
		}
		client.sent = r.N
		if r := client.call("Connected", IOArgs{FD: client.fd, Wait: patience}); r.Errno != 0 {
			t.Fatalf("fast open: %v", r)
		} else {
			client.name = r.Name
		}
		*p.server = *l.accept(false)
		p.server.peer, p.server.stream = client, client.stream+1
		return p, r.N
	}
	first, n := open(100) // gets the cookie
	first.server.mustRecv(n)
	first.settle()
	first.client.close()
	first.server.close()
	p, n := open(1000)
	if !p.client.call("TCPInfo", IOArgs{FD: p.client.fd}).Syndata || n != 1000 {
		t.Fatalf("fast open: the SYN carried no data (%d bytes taken)", n)
	}
	return p, n
}

// overtake tries to get later bytes past the early ones: reading a single byte
// shows that the reader uses recv, and leaves the others where they are.
func overtake(p *pair, unread int64) Result {
	p.client.t.Helper()
	if r := p.server.recv(1); r.N != 1 {
		return r
	}
	for range 4 {
		p.client.mustSend(500)
	}
	return p.server.recv(unread - 1 + 4*500)
}

func TestEarlyBytesComeFirst(t *testing.T) {
	for _, c := range earlyBytes {
		t.Run(c.name, func(t *testing.T) {
			w := accelerated(t, node.SessionOptions{})
			p, unread := c.make(t, w)
			if r := overtake(p, unread); r.N != unread-1+4*500 {
				t.Fatalf("received %v", r)
			}
			if c.held != "" {
				p.settle()
			}
			if s := w.mustCarry(c.joined); c.held != "" && s.Stack[c.held].Messages == 0 {
				t.Errorf("no message took the stack for %q: %+v", c.held, s)
			}
		})
	}
}

func TestEarlyBytesControl(t *testing.T) {
	for _, c := range earlyBytes {
		if !c.fails {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			p, unread := c.make(t, control(t))
			r := overtake(p, unread)
			if r.Bad == "" {
				t.Fatalf("the control kept the order (%v): the test above cannot fail", r)
			}
			t.Logf("as it should: %v", r)
		})
	}
}

// TestAcceptQueueOverflow: many clients at once at listen(fd, 0), each sends as soon
// as it is connected; the server begins to accept when the queue has overflowed.
func TestAcceptQueueOverflow(t *testing.T) {
	for _, c := range []struct {
		name    string
		conns   int
		cookies string
	}{
		// The kernel answers an overflow with SYN cookies by default. Then it keeps
		// nothing of the SYN: shunt joins only some, and some connections come to
		// nothing in plain TCP too. What arrives must be right.
		{"syn cookies", 50, "1"},
		// Without, the final ACK is dropped, and the client is ahead of the server
		// for a while; every connection must come through.
		{"syn queue", 20, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, start := range []func(*testing.T) *world{plain, acceleratedDefault} {
				w := start(t)
				ns := newNetns(t)
				ns.sysctl("net/ipv4/tcp_syncookies", c.cookies)
				ns.sysctl("net/ipv4/tcp_syn_linear_timeouts", "60") // a SYN again every second
				overflow(t, w, ns, c.conns, c.cookies == "1")
			}
		})
	}
}

func overflow(t *testing.T, w *world, ns *netns, conns int, lossy bool) {
	c, s := w.agent(ns), w.agent(ns)
	dial(c, s, dialOptions{}).settle() // the device is guarded
	l := s.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 0})
	a := LoopArgs{FD: l.fd, Addr: l.name, Conns: conns, Workers: conns, Wait: slowness * time.Minute, Bound: loopBound}
	if lossy {
		a.Bound = loopBound / 5
	}
	var client, server LoopResult
	start := time.Now()
	running := c.begin("LoopRun", a, &client)
	eventually(t, "overflow of the accept queue", func() bool { return s.call("NetStat", "ListenOverflows").Value > 0 })
	serving := s.begin("LoopServe", a, &server)
	running.end(slowness * 2 * time.Minute)
	t.Logf("%s: %d clean, %d lost, %d wrong of %d, %d overflows, %.1f s", w.name, client.Clean, client.Lost,
		client.Broken-client.Lost, conns, s.call("NetStat", "ListenOverflows").Value, time.Since(start).Seconds())
	if client.Broken > client.Lost || client.Clean == 0 || (client.Lost > 0 && !lossy) {
		t.Errorf("%d of %d clean at the client: %q", client.Clean, conns, client.First)
	}
	if client.Clean == conns {
		serving.end(patience)
		if server.Clean != conns {
			t.Errorf("%d of %d clean at the server: %q", server.Clean, conns, server.First)
		}
	}
	if w.session == nil {
		return
	}
	stats := w.stats()
	t.Logf("joined %d, not joined %v, redirected %v, stack %v", stats.Joined, stats.NotJoined, stats.Redirected, stats.Stack)
	if !lossy {
		w.mustCarry(uint64(conns) + 1)
	} else if stats.Joined < 2 {
		t.Errorf("nothing joined: %+v", stats)
	}
}

// TestSpillAndBack: between the queue and the stack and back, many times.
func TestSpillAndBack(t *testing.T) {
	w := accelerated(t, node.SessionOptions{})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	before := w.stats()
	for round := range 5 {
		p.settle()
		full := fill(p.client, controlSize)
		if full.Errno != unix.EAGAIN {
			t.Fatalf("round %d: sent %v", round, full)
		}
		p.server.mustRecv(full.N)
		p.ping(1000)
		s := w.stats()
		if s.Redirected.Bytes <= before.Redirected.Bytes || s.Spilled().Messages <= before.Spilled().Messages {
			t.Errorf("round %d: redirected %d → %d bytes, spilled %d → %d messages", round,
				before.Redirected.Bytes, s.Redirected.Bytes, before.Spilled().Messages, s.Spilled().Messages)
		}
		before = s
	}
	w.mustCarry(1)
}

// TestUnevenReader: the same, unsynchronised: a stream to a reader that rests now
// and then, with a small queue.
func TestUnevenReader(t *testing.T) {
	const size = 64 << 20
	w := accelerated(t, node.SessionOptions{MaxQueue: 256 << 10})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.apart()
	p.settle()
	for _, chunk := range []int{700, 9 << 10, 64 << 10, 256 << 10} {
		n := int64(min(size, chunk<<14))
		var r Result
		reading := p.server.begin("Recv", IOArgs{FD: p.server.fd, Stream: p.client.stream, Offset: p.server.got,
			N: n, Chunk: 50000, Wait: patience, Pace: 5 * time.Millisecond}, &r)
		if sent := p.client.sendWith(n, chunk, patience); sent.N != n {
			t.Fatalf("chunks of %d: sent %v of %d", chunk, sent, n)
		}
		reading.end(2 * patience)
		p.server.got += r.N
		if r.N != n {
			t.Fatalf("chunks of %d: received %v of %d", chunk, r, n)
		}
	}
	s := w.mustCarry(1)
	if s.Spilled().Messages == 0 {
		t.Errorf("nothing spilled: %+v", s)
	}
	t.Logf("redirected %v, stack %v", s.Redirected, s.Stack)
}
