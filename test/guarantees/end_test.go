// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// G6: the end of a connection looks as plain TCP's does.

// story is what the two ends saw, in the order of the script.
type story []string

func (s *story) tell(what string, r any) { *s = append(*s, fmt.Sprintf("%s: %v", what, r)) }

// ended is what an end sees from now on: what is left to read, then the end; twice,
// as an error is reported once. Then what writing gives, and what poll says.
func (s *story) ended(who string, e *end) {
	e.t.Helper()
	s.tell(who+" reads", e.recv(1<<30))
	s.tell(who+" reads again", e.recv(1<<30))
	s.tell(who+" writes", e.send(10))
	s.tell(who+" polls", eventNames(e.poll(unix.POLLIN|unix.POLLOUT|unix.POLLRDHUP, patience)))
	s.tell(who+" asks SO_ERROR", unix.ErrnoName(e.call("SockErr", IOArgs{FD: e.fd}).Errno))
}

func eventNames(events int16) string {
	var names []string
	for _, e := range []struct {
		bit  int16
		name string
	}{{unix.POLLIN, "IN"}, {unix.POLLOUT, "OUT"}, {unix.POLLERR, "ERR"}, {unix.POLLHUP, "HUP"}, {unix.POLLRDHUP, "RDHUP"}} {
		if events&e.bit != 0 {
			names = append(names, e.name)
		}
	}
	return strings.Join(names, "|")
}

// arrived waits until an end has something to read.
func arrived(e *end) {
	e.t.Helper()
	if got := e.poll(unix.POLLIN, patience); got&unix.POLLIN == 0 {
		e.t.Fatalf("%s world: nothing arrived", e.world.name)
	}
}

// script is the last act of a pair that is on the short path.
type script struct {
	name   string
	resets int // closes with redirected bytes unread, which shunt must tell as RST; -1: the kernel may
	run    func(p *pair, s *story)
	blocks bool // not for blocking sockets: a call of it waits until the socket is full
}

// knownLimits are the differences from plain TCP that docs/accel.md names, by
// script: what plain TCP tells, and what an accelerated pair tells instead. A limit
// that is gone fails the test as a new difference does.
var knownLimits = map[string]map[string]string{
	// Only a FIN can be turned into the RST, and it is out already. The peer
	// learns of it with its next write.
	"shutdown with bytes unread, then close": {
		"client writes: 0 bytes, EPIPE":  "client writes: 10 bytes",
		"client polls: IN|OUT|HUP|RDHUP": "client polls: IN|OUT|ERR|HUP|RDHUP",
		"client asks SO_ERROR: ":         "client asks SO_ERROR: EPIPE",
	},
}

var scripts = []script{
	{"write after shutdown", 0, func(p *pair, s *story) {
		s.tell("shutdown", p.client.shutdown(unix.SHUT_WR))
		s.tell("client writes", p.client.send(100))
		s.tell("client writes again", p.client.send(100))
		s.tell("server reads", p.server.recv(1<<30))
		// The other direction goes on.
		s.tell("server writes", p.server.send(5000))
		s.tell("client reads", p.client.recv(5000))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"end after the last byte", 0, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(100000))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"end after the last byte, shutdown", 0, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(100000))
		s.tell("shutdown", p.server.shutdown(unix.SHUT_WR))
		s.tell("client reads", p.client.recv(1<<30))
		s.tell("client writes", p.client.send(100000))
		p.client.close()
		s.ended("server", p.server)
	}, false},
	{"both shut down", 0, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(3000))
		s.tell("server writes", p.server.send(4000))
		s.tell("shutdown", p.client.shutdown(unix.SHUT_WR))
		s.tell("shutdown", p.server.shutdown(unix.SHUT_WR))
		s.ended("client", p.client)
		s.ended("server", p.server)
	}, false},
	{"shutdown of both directions", 0, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(3000))
		s.tell("shutdown", p.client.shutdown(unix.SHUT_RDWR))
		s.tell("client reads", p.client.recv(100))
		s.tell("client writes", p.client.send(100))
		s.tell("server reads", p.server.recv(1<<30))
	}, false},
	{"shutdown of reading", 0, func(p *pair, s *story) {
		s.tell("shutdown", p.server.shutdown(unix.SHUT_RD))
		s.tell("server reads", p.server.recv(100))
		s.tell("client writes", p.client.send(100))
		arrived(p.server)
		s.tell("server reads", p.server.recv(100))
		s.tell("server writes", p.server.send(100))
		s.tell("client reads", p.client.recv(100))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"shutdown of reading with bytes unread", 0, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(100))
		arrived(p.server)
		s.tell("shutdown", p.server.shutdown(unix.SHUT_RD))
		s.tell("server reads", p.server.recv(1000))
		s.tell("client writes", p.client.send(100))
		arrived(p.server)
		s.tell("server reads", p.server.recv(100))
	}, false},
	{"close with bytes unread", 1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"close with bytes unread, the peer writes first", 1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		p.server.close()
		s.tell("client polls", eventNames(p.client.poll(unix.POLLRDHUP, patience)))
		s.tell("client writes", p.client.send(100))
		s.tell("client writes again", p.client.send(100))
		s.tell("client reads", p.client.recv(100))
	}, false},
	{"close after part was read", 1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		s.tell("server reads", p.server.recv(999))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"close after a peek", 1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		s.tell("server peeks", p.server.call("Recv", IOArgs{FD: p.server.fd, Stream: p.client.stream,
			Offset: p.server.got, N: 1000, Chunk: 1000, Flags: unix.MSG_PEEK, Wait: patience}))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"close with bytes unread, while the peer has some", 1, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(500))
		arrived(p.client)
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		p.server.close()
		s.tell("client polls", eventNames(p.client.poll(unix.POLLRDHUP, patience)))
		s.ended("client", p.client)
	}, false},
	{"close with bytes unread after shutdown", -1, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(500))
		s.tell("shutdown", p.server.shutdown(unix.SHUT_WR))
		s.tell("client reads", p.client.recv(1<<30))
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		p.server.close() // its FIN is out already
		s.ended("client", p.client)
	}, false},
	{"shutdown with bytes unread, then close", -1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		s.tell("shutdown", p.server.shutdown(unix.SHUT_WR))
		s.tell("client reads", p.client.recv(1<<30))
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"shutdown by the peer, then close with its bytes unread", 1, func(p *pair, s *story) {
		s.tell("client writes", p.client.send(1000))
		s.tell("shutdown", p.client.shutdown(unix.SHUT_WR))
		arrived(p.server)
		eventually(p.client.t, "FIN", func() bool { return p.server.poll(unix.POLLRDHUP, patience)&unix.POLLRDHUP != 0 })
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"close with a full queue unread", 0, func(p *pair, s *story) {
		if r := fill(p.client, controlSize); r.Errno != unix.EAGAIN {
			p.client.t.Fatalf("fill: %v", r)
		}
		p.server.close() // the stack has unread bytes too, and resets by itself
		s.ended("client", p.client)
	}, true},
	{"linger 0", 0, func(p *pair, s *story) {
		p.server.call("Linger", IOArgs{FD: p.server.fd})
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"linger 0 with bytes unread at both ends", 0, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(5000))
		arrived(p.client)
		s.tell("client writes", p.client.send(5000))
		arrived(p.server)
		p.server.call("Linger", IOArgs{FD: p.server.fd})
		p.server.close()
		s.tell("client polls", eventNames(p.client.poll(unix.POLLRDHUP, patience)))
		s.ended("client", p.client)
	}, false},
	{"linger 5 with bytes unread at the peer", 0, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(5000))
		p.server.call("Linger", IOArgs{FD: p.server.fd, Value: 5})
		p.server.close()
		s.ended("client", p.client)
	}, false},
	{"kill -9", 0, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(5000))
		p.server.kill()
		s.ended("client", p.client)
	}, false},
	{"kill -9 with bytes unread", 1, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(5000))
		arrived(p.client)
		s.tell("client writes", p.client.send(1000))
		arrived(p.server)
		p.server.kill()
		s.tell("client polls", eventNames(p.client.poll(unix.POLLRDHUP, patience)))
		s.ended("client", p.client)
	}, false},
	{"the active end closes with bytes unread", 1, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(1000))
		arrived(p.client)
		p.client.close()
		s.ended("server", p.server)
	}, false},
	{"both close with bytes unread", 1, func(p *pair, s *story) {
		s.tell("server writes", p.server.send(1000))
		s.tell("client writes", p.client.send(1000))
		arrived(p.client)
		arrived(p.server)
		p.client.close()
		s.tell("server polls", eventNames(p.server.poll(unix.POLLRDHUP, patience)))
		s.tell("server closes", p.server.close())
	}, false},
}

// tellIn plays a script on a new pair of a world.
func (sc script) tellIn(w *world, o dialOptions, cn, sn *netns) (s story) {
	w.t.Helper()
	p := dial(w.agent(cn), w.agent(sn), o)
	p.settle()
	sc.run(p, &s)
	return s
}

func (sc script) compare(t *testing.T, accelerated func(*testing.T) *world, o dialOptions, cn, sn *netns) {
	t.Helper()
	want := sc.tellIn(plain(t), o, cn, sn)
	for i, told := range want {
		if instead, ok := knownLimits[sc.name][told]; ok {
			want[i] = instead
		}
	}
	w := accelerated(t)
	got := sc.tellIn(w, o, cn, sn)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plain (-) and accelerated (+) end differently:\n%s", diff)
	}
	if s := w.mustCarry(1); sc.resets >= 0 && s.Resets != uint64(sc.resets) {
		t.Errorf("%d resets, want %d", s.Resets, sc.resets)
	}
}

func TestEnd(t *testing.T) {
	for _, sc := range scripts {
		t.Run(sc.name, func(t *testing.T) { sc.compare(t, acceleratedDefault, dialOptions{}, nil, nil) })
	}
}

// TestEndBlocking: the same with blocking sockets, which take another way out.
func TestEndBlocking(t *testing.T) {
	for _, sc := range scripts {
		if sc.blocks {
			continue
		}
		t.Run(sc.name, func(t *testing.T) { sc.compare(t, acceleratedG4, dialOptions{blocking: true}, nil, nil) })
	}
}

// TestEndElsewhere: the reset is made from the segment that leaves a device, so it
// matters which one, and which protocol.
func TestEndElsewhere(t *testing.T) {
	for name, c := range map[string]struct{ a, b, server string }{
		"IPv6 loopback": {"", "", "[::1]:0"},
		"IPv4 veth":     {"10.77.6.1/24", "10.77.6.2/24", "10.77.6.2:0"},
		"IPv6 veth":     {"fd77:6::1/64", "fd77:6::2/64", "[fd77:6::2]:0"},
	} {
		t.Run(name, func(t *testing.T) {
			var cn, sn *netns
			if c.a != "" {
				cn, sn = newVeth(t, c.a, c.b)
			}
			for _, sc := range scripts {
				if sc.resets != 0 {
					t.Run(sc.name, func(t *testing.T) {
						sc.compare(t, acceleratedDefault, dialOptions{server: netip.MustParseAddrPort(c.server)}, cn, sn)
					})
				}
			}
		})
	}
}

// TestEndControl: the scripts in which the control ends otherwise than plain TCP.
func TestEndControl(t *testing.T) {
	differ := 0
	for _, sc := range scripts {
		if sc.resets == 0 {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			want, got := sc.tellIn(plain(t), dialOptions{}, nil, nil), sc.tellIn(control(t), dialOptions{}, nil, nil)
			if diff := cmp.Diff(want, got); diff != "" {
				differ++
				t.Logf("as it should, plain (-) and control (+):\n%s", diff)
			}
		})
	}
	if differ == 0 {
		t.Error("the control ends every script as plain TCP does: the test above cannot fail")
	}
}
