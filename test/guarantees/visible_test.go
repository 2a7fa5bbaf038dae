// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"testing"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

// G10: what every connection does can be seen.

func TestConnectionIsVisible(t *testing.T) {
	w := accelerated(t, node.SessionOptions{})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.settle()

	before := ends(t, p)
	p.client.mustSend(3000)
	p.server.mustRecv(3000)
	p.server.mustSend(500)
	p.client.mustRecv(500)
	after := ends(t, p)

	for i, want := range []struct {
		e     *end
		side  string
		bytes uint64
	}{{p.client, "active", 3000}, {p.server, "passive", 500}} {
		c, old := after[i], before[i]
		if c.Local != want.e.name || c.Remote != want.e.peer.name || c.Side != want.side ||
			c.Path != "short" || c.Left != "" || c.Netns != want.e.netns {
			t.Errorf("want %v → %v, %s, short: %+v", want.e.name, want.e.peer.name, want.side, c)
		}
		if c.PeerCookie != after[1-i].Cookie || c.Cookie != old.Cookie {
			t.Errorf("cookies: %+v is not the peer of %+v", c, after[1-i])
		}
		if bytes, msgs := c.Redirected.Bytes-old.Redirected.Bytes, c.Redirected.Messages-old.Redirected.Messages; bytes != want.bytes || msgs != 1 {
			t.Errorf("%s: redirected %d bytes in %d messages, want %d in 1", want.side, bytes, msgs, want.bytes)
		}
		if c.Stack != old.Stack || c.Spilled != old.Spilled {
			t.Errorf("%s: nothing took the stack, but %+v → %+v", want.side, old, c)
		}
	}

	// Per connection and in all they are the same bytes.
	s := w.mustCarry(1)
	if sum := after[0].Redirected.Bytes + after[1].Redirected.Bytes; s.Redirected.Bytes != sum {
		t.Errorf("redirected in all %d, in the connections %d", s.Redirected.Bytes, sum)
	}
	if sum := after[0].Stack.Bytes + after[1].Stack.Bytes; s.StackTotal().Bytes != sum {
		t.Errorf("by the stack in all %d, in the connections %d", s.StackTotal().Bytes, sum)
	}

	// And gone when it is.
	p.client.close()
	p.server.close()
	eventually(t, "an empty table", func() bool { return len(w.conns()) == 0 })
}

// ends finds both ends of the only pair there is.
func ends(t *testing.T, p *pair) [2]accel.Conn {
	t.Helper()
	client, ok := p.client.conn()
	server, ok2 := p.server.conn()
	if conns := p.client.world.conns(); !ok || !ok2 || len(conns) != 2 {
		t.Fatalf("want the two ends of one pair: %+v", conns)
	}
	return [2]accel.Conn{client, server}
}

// TestEveryConnectionIsCounted: each is joined, or not for a reason.
func TestEveryConnectionIsCounted(t *testing.T) {
	w, outside := accelerated(t, node.SessionOptions{}), plain(t)
	inside := [2]*agent{w.agent(nil), w.agent(nil)}
	other := outside.agent(nil)
	for range 7 {
		dial(inside[0], inside[1], dialOptions{}).settle()
	}
	for range 5 {
		dial(inside[0], inside[1], dialOptions{blocking: true}).ping(10)
	}
	for range 3 {
		dial(inside[0], other, dialOptions{}).ping(10)
	}
	for range 2 {
		dial(other, inside[1], dialOptions{}).ping(10)
	}
	s := w.mustCarry(7)
	if s.Connections != 17 || s.NotJoined["blocking"] != 5 || s.NotJoined["remote"] != 5 || len(s.NotJoined) != 2 {
		t.Errorf("want 17 connections, 7 joined, 5 blocking, 5 remote: %+v", s)
	}
	if n := len(w.conns()); n != 14 {
		t.Errorf("%d ends in the table, want 14", n)
	}
}
