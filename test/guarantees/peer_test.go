// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// G2: bytes reach the socket at the other end of the connection, or none.

// exchange has both pairs on their way at once: all four ends send before anyone
// reads. It returns what went wrong; the streams of the ends tell them apart.
func exchange(pairs ...*pair) (wrong []string) {
	const n = 3000
	for range 10 {
		for _, p := range pairs {
			for _, e := range []*end{p.client, p.server} {
				if r := e.send(n); r.N != n {
					wrong = append(wrong, "send: "+r.String())
				}
			}
		}
		for _, p := range pairs {
			for _, e := range []*end{p.server, p.client} {
				if r := e.recvWith(n, quiet); r.N != n {
					wrong = append(wrong, e.name.String()+": "+r.String())
				}
			}
		}
		if wrong != nil {
			return wrong
		}
	}
	return nil
}

func mustExchange(t *testing.T, pairs ...*pair) {
	t.Helper()
	if wrong := exchange(pairs...); wrong != nil {
		t.Fatalf("bytes crossed or got lost: %q", wrong)
	}
}

// carried fails the test unless both ends of each pair sent by the short path.
func carried(t *testing.T, pairs ...*pair) {
	t.Helper()
	for _, p := range pairs {
		for _, e := range []*end{p.client, p.server} {
			if c, ok := e.conn(); !ok || c.Redirected.Bytes == 0 {
				t.Errorf("%v → %v redirected nothing: %+v", e.name, e.peer.name, c)
			}
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, c := range []struct {
		name   string
		a, b   string // addresses of the two ends of a veth; none: loopback
		server string
		target string // where the client connects to, if not there
	}{
		{name: "IPv4 loopback", server: "127.0.0.1:0"},
		{name: "IPv4 loopback, another address", server: "127.77.0.9:0"},
		{name: "IPv6 loopback", server: "[::1]:0"},
		{name: "IPv4-mapped", server: "[::]:0", target: "127.0.0.1:0"},
		{name: "IPv4-mapped, both ends", server: "[::]:0", target: "[::ffff:127.0.0.1]:0"},
		{name: "IPv4 veth", a: "10.77.2.1/24", b: "10.77.2.2/24", server: "10.77.2.2:0"},
		{name: "IPv6 veth", a: "fd77:2::1/64", b: "fd77:2::2/64", server: "[fd77:2::2]:0"},
		{name: "IPv4-mapped veth", a: "10.77.3.1/24", b: "10.77.3.2/24", server: "[::]:0", target: "10.77.3.2:0"},
		{name: "IPv4 within a namespace", a: "10.77.4.1/24", b: "10.77.4.2/24", server: "10.77.4.1:0", target: "10.77.4.1:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := accelerated(t, node.SessionOptions{})
			var cn, sn *netns
			if c.a != "" {
				cn, sn = newVeth(t, c.a, c.b)
			}
			o := dialOptions{server: netip.MustParseAddrPort(c.server)}
			if c.target != "" {
				o.target = netip.MustParseAddrPort(c.target)
			}
			if c.target == c.server {
				sn = cn
			}
			p := dial(w.agent(cn), w.agent(sn), o)
			p.settle()
			mustExchange(t, p)
			carried(t, p)
			w.mustCarry(1)
		})
	}
}

// twins makes two pairs with the same four-tuple, at the same time, in two places
// that know nothing of each other.
func twins(w *world, places [2][2]*netns, client, server string) (a, b *pair) {
	o := dialOptions{server: netip.MustParseAddrPort(server), bind: netip.MustParseAddrPort(client)}
	a = dial(w.agent(places[0][0]), w.agent(places[0][1]), o)
	b = dial(w.agent(places[1][0]), w.agent(places[1][1]), o)
	return a, b
}

func TestSameTuple(t *testing.T) {
	for _, c := range []struct {
		name           string
		places         func(t *testing.T) [2][2]*netns
		client, server string
	}{
		{"IPv4 loopback in two namespaces", loopbacks, "127.0.0.1:7001", "127.0.0.1:7002"},
		{"IPv6 loopback in two namespaces", loopbacks, "[::1]:7001", "[::1]:7002"},
		{"overlapping networks", overlapping, "10.77.5.1:7001", "10.77.5.2:7002"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := accelerated(t, node.SessionOptions{})
			a, b := twins(w, c.places(t), c.client, c.server)
			mustExchange(t, a, b)
			a.settle()
			b.settle()
			mustExchange(t, a, b)
			carried(t, a, b)
			w.mustCarry(2)
		})
	}
}

func loopbacks(t *testing.T) [2][2]*netns {
	a, b := newNetns(t), newNetns(t)
	return [2][2]*netns{{a, a}, {b, b}}
}

func overlapping(t *testing.T) (places [2][2]*netns) {
	for i := range places {
		places[i][0], places[i][1] = newVeth(t, "10.77.5.1/24", "10.77.5.2/24")
	}
	return places
}

const (
	twinClient = "10.77.5.1"
	twinServer = "10.77.5.2"
	twinBind   = twinClient + ":7001"
	twinListen = twinServer + ":7002"
)

// half is a connection held in the middle of its handshake.
type half struct {
	client, listener *end
	cn, sn           *netns
}

// halfOpen begins a connection with the twins' tuple; its SYN-ACK is lost.
func halfOpen(w *world, place [2]*netns) *half {
	h := &half{cn: place[0], sn: place[1]}
	h.listener = w.agent(h.sn).listen(SocketArgs{Bind: netip.MustParseAddrPort(twinListen), Backlog: 16})
	h.client = w.agent(h.cn).socket(SocketArgs{Family: unix.AF_INET, Bind: netip.MustParseAddrPort(twinBind)})
	holdSynAck(h.client, h.listener, h.cn, h.sn, twinClient)
	return h
}

// finish lets the handshake through.
func (h *half) finish() *pair {
	h.client.t.Helper()
	h.sn.neighbour(twinClient, h.cn)
	h.cn.neighbour(twinServer, h.sn)
	r := h.client.call("Connected", IOArgs{FD: h.client.fd, Wait: patience})
	if r.Errno != 0 {
		h.client.t.Fatalf("connect: %v", r)
	}
	h.client.name = r.Name
	return couple(h.client, h.listener.accept(false))
}

// dialTwin connects the other pair with the same tuple; server's agent may be of
// another world than the client's.
func dialTwin(client, server *agent) *pair {
	return dial(client, server, dialOptions{
		server: netip.MustParseAddrPort(twinListen), bind: netip.MustParseAddrPort(twinBind),
	})
}

// TestNoteOfAStranger: the SYN of one connection left its note; the client of
// another one with the same tuple, whose server is not selected, finds it. When the
// server of the first comes to the pairing, the sequence numbers say that this
// client is not its own. If the stranger was used before, it has given up by then.
func TestNoteOfAStranger(t *testing.T) {
	for _, c := range []struct {
		name string
		used bool
		why  string
	}{{"refused by the proof", false, "proof"}, {"used before", true, "remote"}} {
		t.Run(c.name, func(t *testing.T) {
			w, outside := accelerated(t, node.SessionOptions{}), plain(t)
			places := overlapping(t)
			held := halfOpen(w, places[0])
			stranger := dialTwin(w.agent(places[1][0]), outside.agent(places[1][1]))
			if c.used {
				mustExchange(t, stranger)
			}
			late := held.finish()
			mustExchange(t, late, stranger)
			s := w.stats()
			if s.NotJoined[c.why] == 0 || s.Joined != 0 || s.Redirected.Bytes != 0 {
				t.Errorf("want one not joined for %q, and nothing joined: %+v", c.why, s)
			}
			if c := w.conns(); len(c) != 0 {
				t.Errorf("refused, but in the table: %+v", c)
			}
		})
	}
}

// TestNoteWithoutAPair: the same, and bytes flow before the other server's end comes:
// the client that followed the wrong note does not stay in the table.
func TestNoteWithoutAPair(t *testing.T) {
	w, outside := accelerated(t, node.SessionOptions{}), plain(t)
	places := overlapping(t)
	held := halfOpen(w, places[0])
	stranger := dialTwin(w.agent(places[1][0]), outside.agent(places[1][1]))
	mustExchange(t, stranger)
	if c, ok := stranger.client.conn(); ok {
		t.Errorf("its peer is not selected, but it is in the table: %+v", c)
	}
	late := held.finish()
	mustExchange(t, late, stranger)
	if s := w.stats(); s.Joined != 0 || s.NotJoined["remote"] == 0 || s.Redirected.Bytes != 0 {
		t.Errorf("want nothing joined: %+v", s)
	}
}

// TestWaitingStranger: one client is connected and waits for its server's end; the
// client and the server of another connection with the same tuple come first.
func TestWaitingStranger(t *testing.T) {
	w := accelerated(t, node.SessionOptions{})
	places := overlapping(t)
	held := halfOpen(w, places[0])
	holdAck(held.client, held.cn, held.sn, twinClient, twinServer)
	stranger := dialTwin(w.agent(places[1][0]), w.agent(places[1][1]))
	mustExchange(t, stranger)
	late := held.finish()
	mustExchange(t, late, stranger)
	s := w.stats()
	if s.NotJoined["proof"] == 0 || s.NotJoined["collision"] == 0 || s.Joined != 0 || s.Redirected.Bytes != 0 {
		t.Errorf("want one refused by the proof, one by the collision, and nothing joined: %+v", s)
	}
	if c := w.conns(); len(c) != 0 {
		t.Errorf("refused, but in the table: %+v", c)
	}
}

// TestStolenNote: both ends of the other connection are selected, and it is
// faster: it is joined with the note of the held one, and the proof holds.
func TestStolenNote(t *testing.T) {
	w := accelerated(t, node.SessionOptions{})
	places := overlapping(t)
	held := halfOpen(w, places[0])
	fast := dialTwin(w.agent(places[1][0]), w.agent(places[1][1]))
	fast.settle()
	late := held.finish()
	mustExchange(t, late, fast)
	fast.settle()
	carried(t, fast)
	s := w.mustCarry(1)
	if s.NotJoined["remote"] == 0 {
		t.Errorf("the held connection should count as not joined: %+v", s)
	}
}

// strangers are two connections with one tuple, each with one end in the world: the
// client of the one and the server of the other.
func strangers(t *testing.T, w *world, serverFirst bool) (a, b *pair) {
	outside, places := plain(t), overlapping(t)
	clientIn := func() { a = dialTwin(w.agent(places[0][0]), outside.agent(places[0][1])) }
	serverIn := func() { b = dialTwin(outside.agent(places[1][0]), w.agent(places[1][1])) }
	if serverFirst {
		serverIn()
		clientIn()
	} else {
		clientIn()
		serverIn()
	}
	return a, b
}

func TestStrangers(t *testing.T) {
	for name, serverFirst := range map[string]bool{"client first": false, "server first": true} {
		t.Run(name, func(t *testing.T) {
			w := accelerated(t, node.SessionOptions{})
			a, b := strangers(t, w, serverFirst)
			mustExchange(t, a, b)
			if s := w.stats(); s.Joined != 0 || s.Redirected.Bytes != 0 || s.NotJoined["remote"] != 2 {
				t.Errorf("want two not joined because remote: %+v", s)
			}
			if c := w.conns(); len(c) != 0 {
				t.Errorf("the other end is not selected, but in the table: %+v", c)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		a, b := strangers(t, control(t), false)
		wrong := exchange(a, b)
		if wrong == nil {
			t.Fatal("no byte crossed in the control: the tests above cannot fail")
		}
		t.Logf("as it should: %q", wrong)
	})
}

// TestNeverInserted: one end is outside of the session.
func TestNeverInserted(t *testing.T) {
	const conns = 20
	for _, c := range []struct {
		name           string
		client, server bool // inside
	}{
		{"server outside", true, false},
		{"client outside", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, outside := accelerated(t, node.SessionOptions{}), plain(t)
			in := map[bool]*world{true: w, false: outside}
			client, server := in[c.client].agent(nil), in[c.server].agent(nil)
			for range conns {
				p := dial(client, server, dialOptions{})
				mustExchange(t, p)
			}
			s := w.stats()
			if s.Joined != 0 || s.NotJoined["remote"] != conns || s.Connections != conns || s.Redirected.Bytes != 0 {
				t.Errorf("want %d not joined because remote, and nothing else: %+v", conns, s)
			}
			if c := w.conns(); len(c) != 0 {
				t.Errorf("in the table: %+v", c)
			}
		})
	}
}

// TestReconnect: a socket that is connected a second time keeps its cookie, but
// nothing of its first peer.
func TestReconnect(t *testing.T) {
	for _, start := range []func(*testing.T) *world{plain, acceleratedDefault} {
		w := start(t)
		client, server := w.agent(nil), w.agent(nil)
		p := dial(client, server, dialOptions{})
		p.settle()
		p.server.mustSend(1000)
		arrived(p.client)
		if r := p.client.call("Disconnect", IOArgs{FD: p.client.fd}); r.Errno != 0 {
			t.Fatalf("%s: disconnect: %v", w.name, r.Errno)
		}

		l := server.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 1})
		again := &end{agent: client, fd: p.client.fd}
		again.connect(l.name)
		second := couple(again, l.accept(false))
		second.settle() // compares every byte
		l.close()
	}
}
