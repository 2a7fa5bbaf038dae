// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// G5 and G7: pairs that are better off, or only right, on plain TCP leave the
// map for good, with every byte in its place.

// mustLeave uses the pair until both ends are out of the map, for that reason.
func (p *pair) mustLeave(why string) {
	p.client.t.Helper()
	w := p.client.world
	for deadline := time.Now().Add(patience); ; {
		p.ping(2000)
		n, err := w.session.Mapped()
		if err != nil {
			w.t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d sockets are still in the map: %+v", n, w.stats())
		}
	}
	before := w.stats()
	if before.Left[why] != 1 {
		w.t.Errorf("left by reason: %v, want one %s", before.Left, why)
	}
	p.ping(300 << 10)
	if after := w.stats(); after.Redirected != before.Redirected {
		w.t.Errorf("left, but redirected %+v, then %+v", before.Redirected, after.Redirected)
	}
}

func TestSpecialReadersLeave(t *testing.T) {
	for why, prepare := range map[string]func(server *end) Result{
		"rcvlowat":  option(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 100),
		"inq":       option(unix.IPPROTO_TCP, unix.TCP_INQ, 1),
		"timestamp": option(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		"zerocopy":  option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1),
		"mmap":      func(e *end) Result { return e.call("Map", IOArgs{FD: e.fd}) },
	} {
		t.Run(why, func(t *testing.T) {
			w := acceleratedDefault(t)
			p := dial(w.agent(nil), w.agent(nil), dialOptions{})
			p.settle()
			if r := prepare(p.server); r.Errno != 0 {
				t.Fatalf("prepare: %v", r.Errno)
			}
			p.mustLeave(why)
		})
	}
	t.Run("timestamping", func(t *testing.T) {
		w := acceleratedDefault(t)
		p := dial(w.agent(nil), w.agent(nil), dialOptions{})
		p.settle()
		if r := option(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_RX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE)(p.client); r.Errno != 0 {
			t.Fatalf("prepare: %v", r.Errno)
		}
		p.mustLeave("timestamp")
	})
}

func option(level, name, value int) func(*end) Result {
	return func(e *end) Result { return e.call("Set", IOArgs{FD: e.fd, Level: level, Name: name, Value: value}) }
}

// splice reads n bytes of what the peer sends with splice(2).
func (e *end) splice(n int64, wait time.Duration) Result {
	e.t.Helper()
	r := e.call("Splice", IOArgs{FD: e.fd, Stream: e.peer.stream, Offset: e.got, N: n, Wait: wait})
	e.got += r.N
	return r
}

// A reader that turns to splice when nothing waits for it loses nothing.
func TestReaderTurnsToSplice(t *testing.T) {
	w := acceleratedDefault(t)
	client, server := w.agent(nil), w.agent(nil)
	l := server.listen(SocketArgs{Bind: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 16})
	dialTo := func() *pair {
		c := client.socket(SocketArgs{Family: unix.AF_INET})
		c.connect(l.name)
		return couple(c, l.accept(false))
	}
	p := dialTo()
	p.settle()
	if r := p.server.splice(1, quiet); r.N != 0 || r.Errno != unix.EAGAIN {
		t.Fatalf("nothing was sent, but spliced %v", r)
	}
	for range 20 {
		p.client.mustSend(50_000)
		if r := p.server.splice(50_000, patience); r.N != 50_000 {
			t.Fatalf("spliced %v of 50000: %+v", r, w.stats())
		}
		p.server.mustSend(100)
		p.client.mustRecv(100)
	}
	s := w.stats()
	if s.Left["splice"] != 1 || len(s.Faults) > 0 {
		t.Errorf("want one that left for splice: %+v", s)
	}
	// Its workload does not join again, until it is let.
	q := dialTo()
	q.ping(1000)
	if s := w.stats(); s.NotJoined["excluded"] != 1 || s.Joined != 1 {
		t.Errorf("want one joined, then one excluded: %+v", s)
	}
	list, err := w.session.Exclusions()
	if err != nil || len(list) != 1 || list[0].Port != l.name.Port() || list[0].Side != "passive" {
		t.Errorf("exclusions: %+v, %v", list, err)
	}
	if n, err := w.session.ClearExclusions(); n != 1 || err != nil {
		t.Errorf("cleared %d, %v", n, err)
	}
	dialTo().settle()
	if s := w.stats(); s.Joined != 2 {
		t.Errorf("cleared, but joined %d, want 2", s.Joined)
	}
}

// One that turns to splice with redirected bytes waiting would never see them.
func TestSpliceWithBytesWaitingIsReset(t *testing.T) {
	for _, ns := range []bool{false, true} {
		w := acceleratedDefault(t)
		var p *pair
		if ns {
			a, b := newVeth(t, "10.77.9.1/24", "10.77.9.2/24")
			p = dial(w.agent(a), w.agent(b), dialOptions{server: netip.MustParseAddrPort("10.77.9.2:0")})
		} else {
			p = dial(w.agent(nil), w.agent(nil), dialOptions{})
		}
		p.settle()
		p.client.mustSend(5000)
		r := p.server.splice(5000, patience)
		if r.N != 0 || r.Errno != unix.ECONNABORTED {
			t.Errorf("spliced %v, want a reset", r)
		}
		if r := p.client.recvWith(1, patience); r.Errno != unix.ECONNRESET {
			t.Errorf("the sender received %v, want a reset", r)
		}
		if s := w.stats(); s.Left["splice"] != 1 {
			t.Errorf("want one that left for splice: %+v", s)
		}
	}
}

// A pure splice reader gets everything and never a redirected byte.
func TestPureSpliceReader(t *testing.T) {
	w := acceleratedDefault(t)
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	for range 10 {
		p.client.mustSend(100_000)
		if r := p.server.splice(100_000, patience); r.N != 100_000 {
			t.Fatalf("spliced %v of 100000", r)
		}
	}
	if s := w.stats(); s.Redirected.Bytes != 0 {
		t.Errorf("redirected to a splice reader: %+v", s)
	}
}

// G7: small writes in one direction leave on one CPU; large ones stay.
func TestSmallWriteStreamLeaves(t *testing.T) {
	for _, c := range []struct {
		chunk int
		left  uint64
	}{{1000, 1}, {64 << 10, 0}} {
		w := acceleratedDefault(t)
		client, server := w.agent(nil), w.agent(nil)
		client.pin(0)
		server.pin(0)
		p := dial(client, server, dialOptions{})
		p.settle()
		const total = 16 << 20
		var got Result
		reading := p.server.begin("Recv", IOArgs{FD: p.server.fd, Stream: p.client.stream, Offset: p.server.got, N: total, Chunk: 64 << 10, Wait: patience}, &got)
		if r := p.client.sendWith(total, c.chunk, patience); r.N != total {
			t.Fatalf("sent %v", r)
		}
		reading.end(3 * patience)
		if p.server.got += got.N; got.N != total {
			t.Fatalf("received %v", got)
		}
		if s := w.stats(); s.Left["stream"] != c.left {
			t.Errorf("writes of %d: left %v, want stream %d", c.chunk, s.Left, c.left)
		}
		p.ping(1000)
	}
}

// pin restricts the agent to one CPU.
func (a *agent) pin(cpu int) {
	a.t.Helper()
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(a.cmd.Process.Pid) + "/task")
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		err = errors.Join(err, unix.SchedSetaffinity(tid, &set))
	}
	if err != nil {
		a.t.Fatalf("pin an agent: %v", err)
	}
}

// apart puts the ends on two CPUs, where no stream leaves for its small writes.
func (p *pair) apart() {
	p.client.t.Helper()
	if runtime.NumCPU() < 2 {
		p.client.t.Fatal("needs two CPUs")
	}
	p.client.pin(0)
	p.server.pin(1)
}

// Small messages that are answered are no stream.
func TestRequestResponseStays(t *testing.T) {
	w := accelerated(t, node.SessionOptions{})
	p := dial(w.agent(nil), w.agent(nil), dialOptions{})
	p.settle()
	for range 500 {
		p.ping(10)
	}
	if s := w.stats(); len(s.Left) != 0 {
		t.Errorf("request/response left: %v", s.Left)
	}
}
