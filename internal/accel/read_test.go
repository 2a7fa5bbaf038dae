// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntnet/shunt/internal/kernel"
)

// loaded is an instance on a cgroup of its own, in which this process is until
// the test ends: its connections are accelerated.
func loaded(t *testing.T, opts Options) *Plane {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("SHUNT_REQUIRE_ALL") == "1" {
			t.Fatal("SHUNT_REQUIRE_ALL=1, but: needs root, to load BPF")
		}
		t.Skip("needs root, to load BPF")
	}
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(kernel.EnsureBPFFS("/sys/fs/bpf"), kernel.RemoveMemlock()); err != nil {
		t.Fatal(err)
	}
	cgroup, err := os.MkdirTemp(own, "shunt-test-"+t.Name()+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join("/sys/fs/bpf/shunt/accel", filepath.Base(cgroup))
	p, err := Load(dir, cgroup, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	enter := func(cgroup string) {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0); err != nil {
			t.Error(err)
		}
	}
	enter(cgroup)
	t.Cleanup(func() { enter(own) })
	return p
}

// storm makes connections one after the other, each with some messages, and
// closes them.
type storm struct {
	l    net.Listener
	sent atomic.Uint64 // messages, counted before they are sent
}

const stormMessages = 50 // of each connection, in each direction

func (s *storm) connection() error {
	c, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := s.l.Accept()
	if err != nil {
		return err
	}
	defer d.Close()
	for range stormMessages {
		for _, pair := range [][2]net.Conn{{c, d}, {d, c}} {
			s.sent.Add(1)
			b := []byte{1}
			if _, err := pair[0].Write(b); err != nil {
				return err
			}
			if _, err := io.ReadFull(pair[1], b); err != nil {
				return err
			}
		}
	}
	return nil
}

// all is what joined sockets sent, whichever way.
func all(s Stats) uint64 { return s.StackTotal().Messages + s.Redirected.Messages }

// A connection that closes while its counts are read is counted once, not at the
// connection and in the totals too: no sum is ever more than what was sent.
func TestStatsUnderCloses(t *testing.T) {
	const connections = 3000
	p := loaded(t, Options{AcceptG6: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &storm{l: l}
	ended := make(chan error, 1)
	go func() {
		var err error
		for n := 0; n < connections && err == nil; n++ {
			err = s.connection()
		}
		ended <- err
	}()
	var reads, behind int
	for running := true; running; reads++ {
		before := s.sent.Load()
		stats, err := p.Stats()
		if err != nil {
			t.Fatal(err)
		}
		after := s.sent.Load()
		if sum := all(stats); sum > after {
			t.Fatalf("read %d: %d messages counted, %d sent", reads, sum, after)
		} else if sum+1 < before { // the last may be counted but not sent
			behind++
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
	}
	t.Logf("%d reads, %d of them without a connection that just closed", reads, behind)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		conns, err := p.Conns()
		if err != nil {
			t.Fatal(err)
		}
		if len(conns) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are left", len(conns))
		}
	}
	stats, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if sum := all(stats); sum != s.sent.Load() || stats.Joined != connections || stats.Redirected.Messages < sum/2 {
		t.Errorf("%d messages counted, %d of them redirected, %d sent; %d joined of %d", sum, stats.Redirected.Messages, s.sent.Load(), stats.Joined, connections)
	}
	// The control: in the other order, one is counted twice.
	if !countedTwice(t, p, s) {
		t.Error("connections first and totals second do not count a connection twice: this test cannot fail")
	}
}

// countedTwice reads in the wrong order with a close in between.
func countedTwice(t *testing.T, p *Plane, s *storm) bool {
	t.Helper()
	ended := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := s.connection(); err != nil {
				ended <- err
				return
			}
		}
	}()
	twice := false
	for deadline := time.Now().Add(10 * time.Second); !twice && time.Now().Before(deadline); {
		conns, err := p.Conns()
		if err != nil {
			t.Fatal(err)
		}
		counters, err := p.counters()
		if err != nil {
			t.Fatal(err)
		}
		twice = all(sum(counters, conns)) > s.sent.Load()
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return twice
}

func TestMaxQueue(t *testing.T) {
	p := loaded(t, Options{AcceptG6: true, MaxQueue: 123 << 10})
	for _, open := range []func() (*Plane, error){
		func() (*Plane, error) { return p, nil },
		func() (*Plane, error) { return Open(p.Dir()) }, // as another process does
	} {
		q, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := q.MaxQueue(); n != 123<<10 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if q != p {
			q.Close()
		}
	}
}

// Names lists all that a Stats can have.
func TestAllNames(t *testing.T) {
	var full bpfStats
	for _, list := range [][]uint64{full.Messages[:], full.Bytes[:], full.Refused[:], full.Left[:], full.Faults[:]} {
		for i := range list {
			list[i] = 1
		}
	}
	s, names := sum([]bpfStats{full}, nil), AllNames()
	for what, c := range map[string]struct {
		listed []string
		counts int
		has    func(string) bool
	}{
		"not joined": {names.NotJoined, len(s.NotJoined), func(n string) bool { return s.NotJoined[n] > 0 }},
		"left":       {names.Left, len(s.Left), func(n string) bool { return s.Left[n] > 0 }},
		"stack":      {names.Stack, len(s.Stack), func(n string) bool { return s.Stack[n].Messages > 0 }},
		"faults":     {names.Faults, len(s.Faults), func(n string) bool { return s.Faults[n] > 0 }},
	} {
		if len(c.listed) != c.counts {
			t.Errorf("%s: %d listed, %d counted", what, len(c.listed), c.counts)
		}
		for _, n := range c.listed {
			if !c.has(n) {
				t.Errorf("%s: %q is never counted", what, n)
			}
			if what == "faults" && ExplainFault(n) == n {
				t.Errorf("%s: %q is not explained", what, n)
			}
		}
	}
}
