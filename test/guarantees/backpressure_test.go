// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// G3: the bytes queued at a receiver are bounded, and a sender is held back as
// plain TCP would.

const (
	bounded32   = 32 << 20
	controlSize = 256 << 20
)

// fill sends until the socket takes no more and stays so.
func fill(sender *end, limit int64) Result {
	sender.t.Helper()
	return sender.sendWith(limit, 64<<10, quiet)
}

func TestSenderIsHeldBack(t *testing.T) {
	accepted := map[string]int64{}
	for _, start := range []func(*testing.T) *world{plain, acceleratedDefault} {
		w := start(t)
		p := dial(w.agent(nil), w.agent(nil), dialOptions{})
		p.settle()

		full := fill(p.client, controlSize)
		if full.Errno != unix.EAGAIN || full.N > bounded32 {
			t.Fatalf("%s: the reader that never reads was sent %v; want EAGAIN within %d", w.name, full, bounded32)
		}
		accepted[w.name] = full.N
		t.Logf("%s: %d bytes accepted, the first EAGAIN at %d", w.name, full.N, full.Blocked)
		if e := p.client.poll(unix.POLLOUT, quiet); e != 0 {
			t.Errorf("%s: full, but poll says %#x", w.name, e)
		}

		p.server.mustRecv(full.N)
		if e := p.client.poll(unix.POLLOUT, patience); e&unix.POLLOUT == 0 {
			t.Fatalf("%s: all was read, and no POLLOUT came", w.name)
		}
		p.settle()
		p.ping(200 << 10)

		if w.session == nil {
			continue
		}
		s := w.mustCarry(1)
		if s.Spilled().Bytes == 0 {
			t.Errorf("nothing spilled: %+v", s)
		}
		c, _ := p.client.conn()
		t.Logf("client: redirected %d, spilled %d, stack %d bytes", c.Redirected.Bytes, c.Spilled.Bytes, c.Stack.Bytes)
	}
	t.Logf("accepted bytes: %v", accepted)
}

func acceleratedDefault(t *testing.T) *world { return accelerated(t, node.SessionOptions{}) }

func TestQueueBoundIsTheConfigured(t *testing.T) {
	const bound = 256 << 10
	w := accelerated(t, node.SessionOptions{MaxQueue: bound})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.settle()
	before, _ := p.client.conn()
	full := fill(p.client, controlSize)
	if full.Errno != unix.EAGAIN {
		t.Fatalf("sent %v; want EAGAIN", full)
	}
	after, _ := p.client.conn()
	if queued := after.Redirected.Bytes - before.Redirected.Bytes; queued == 0 || queued > bound {
		t.Errorf("%d bytes redirected to a reader that never reads, want 1 … %d", queued, bound)
	}
	p.server.mustRecv(full.N)
	p.settle()
}

// TestSmallWritesAreBounded: a message costs the kernel 1 KiB besides its bytes,
// so their number is bounded too.
func TestSmallWritesAreBounded(t *testing.T) {
	const bound, writes = 256 << 10, 20_000
	w := accelerated(t, node.SessionOptions{MaxQueue: bound})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.apart()
	p.settle()
	before, _ := p.client.conn()
	if r := p.client.sendWith(writes, 1, patience); r.N != writes {
		t.Fatalf("sent %v, want %d single bytes", r, writes)
	}
	after, _ := p.client.conn()
	if queued := after.Redirected.Messages - before.Redirected.Messages; queued == 0 || queued > bound/1024+1 {
		t.Errorf("%d messages redirected to a reader that never reads, want 1 … %d", queued, bound/1024+1)
	}
	p.server.mustRecv(writes)
	p.settle()
}

func TestBlockingSenderIsHeldBack(t *testing.T) {
	const timeout = time.Second
	for _, start := range []func(*testing.T) *world{plain, acceleratedG4} {
		w := start(t)
		p := dial(w.agent(nil), w.agent(nil), dialOptions{blocking: true})
		p.settle()

		p.client.call("Timeout", IOArgs{FD: p.client.fd, Name: unix.SO_SNDTIMEO, Timeval: timeout})
		full := fill(p.client, controlSize)
		if full.Errno != unix.EAGAIN || full.N > bounded32 {
			t.Fatalf("%s: sent %v; want EAGAIN within %d bytes", w.name, full, bounded32)
		}
		// It has blocked: the bound is what SO_SNDTIMEO says, not what the machine can do.
		if full.Last < timeout/2 || full.Last > 10*timeout {
			t.Errorf("%s: SO_SNDTIMEO of %v ended the call after %v", w.name, timeout, full.Last)
		}
		t.Logf("%s: %d bytes accepted, the last call gave up after %v", w.name, full.N, full.Last)

		// Without a timeout it blocks until the reader makes room, and ends by itself.
		p.client.call("Timeout", IOArgs{FD: p.client.fd, Name: unix.SO_SNDTIMEO})
		const more = 8 << 20
		var r Result
		sending := p.client.begin("Send", IOArgs{FD: p.client.fd, Stream: p.client.stream, Offset: p.client.sent, N: more, Chunk: 64 << 10}, &r)
		select {
		case <-sending.call.Done:
			t.Fatalf("%s: a send to a full connection did not block: %v", w.name, r)
		case <-time.After(quiet):
		}
		p.server.mustRecv(full.N + more)
		sending.end(patience)
		p.client.sent += r.N
		if r.N != more {
			t.Fatalf("%s: the blocked send ended with %v of %d", w.name, r, more)
		}
		p.settle()
		if w.session == nil {
			continue
		}
		if s := w.mustCarry(1); s.Spilled().Bytes == 0 {
			t.Errorf("nothing spilled: %+v", s)
		}
	}
}

func acceleratedG4(t *testing.T) *world {
	return accelerated(t, node.SessionOptions{Accept: []string{"G4"}})
}

// TestBackPressureControl: without a guard the sender is never held back.
func TestBackPressureControl(t *testing.T) {
	w := control(t)
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.settle()
	r := fill(p.client, controlSize)
	if r.N < controlSize {
		t.Fatalf("the control was held back after %v: the tests above cannot fail", r)
	}
	t.Logf("the control accepted %d bytes, then the test stopped", r.N)
}
