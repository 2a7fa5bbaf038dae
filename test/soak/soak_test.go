// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/bench"
	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

var (
	soakFor  = flag.Duration("soak.for", 20*time.Second, "how long the traffic runs")
	soakSeed = flag.Uint64("soak.seed", 0, "repeats the choices of a run; 0: new ones")
)

const (
	workers  = 8        // connections at a time between two processes
	rests    = 4        // how often traffic stops at least, to look at memory
	longest  = 60       // seconds between two rests at most
	patience = 2 * hang // bound of every wait for a process
	// Above these, memory at rest has grown. Other programs use the machine too.
	tcpGrowth    = 16 << 20
	kernelGrowth = 96 << 20
	maxResident  = 256 << 20 // of an agent
)

func TestMain(m *testing.M) {
	if text := os.Getenv(agentEnv); text != "" {
		if err := serveAgent(text); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// need skips where the machine cannot run the tests, or fails if none may be skipped.
func need(t *testing.T) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "needs root"
	} else if _, err := kernel.Cgroup2(); err != nil {
		reason = err.Error()
	}
	switch {
	case reason == "":
	case os.Getenv("SHUNT_REQUIRE_ALL") == "1":
		t.Fatalf("SHUNT_REQUIRE_ALL=1, but this test %s", reason)
	default:
		t.Skip(reason)
	}
}

// ledger is what happened, over all processes.
type ledger struct {
	mu       sync.Mutex
	sum      totals
	kills    uint64
	agents   uint64
	resident int64 // the most of any agent, bytes
	failures []string
}

func (l *ledger) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf(format, args...))
}

func (l *ledger) failed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.failures)
}

// place is where two processes are: their namespaces (nil: the test's own), and
// the address that the server listens on.
type place struct {
	name           string
	client, server *os.File
	listen         string
}

// lane is one pair of processes after the other, in one place and one cgroup.
type lane struct {
	*ledger
	name   string
	place  place
	cgroup int // -1: the test's own
	flip   bool
	// blocking sockets, which shunt leaves alone
	blocking bool
	r        *rand.Rand
}

// process is an agent that runs.
type process struct {
	l      *lane
	cmd    *exec.Cmd
	stdin  io.Closer
	ended  chan error
	hello  chan string
	killed *killed // that of its pair
}

// killed says whether a process of a pair was, before the signal is sent.
type killed struct {
	mu  sync.Mutex
	yes bool
}

func (k *killed) set() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.yes = true
}

func (k *killed) is() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.yes
}

func (l *lane) start(ns *os.File, k *killed, j job) (*process, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	p := &process{l: l, cmd: exec.Command("/proc/self/exe"), ended: make(chan error, 1), hello: make(chan string, 1), killed: k}
	p.cmd.Env = append(os.Environ(), agentEnv+"="+string(text), "GOMEMLIMIT=64MiB")
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if l.cgroup >= 0 {
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, l.cgroup
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	path := "/proc/thread-self/ns/net"
	if ns != nil {
		path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
	}
	// A child is born in the namespace of the thread that makes it.
	if err := kernel.InNetns(path, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start an agent: %w", err)
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			p.take(in.Bytes())
		}
		p.ended <- p.cmd.Wait()
	}()
	return p, nil
}

// take enters a line of an agent's into the ledger.
func (p *process) take(line []byte) {
	var r report
	if err := json.Unmarshal(line, &r); err != nil {
		if !p.killed.is() { // half a line
			p.l.fail("%s: an agent said %q", p.l.name, line)
		}
		return
	}
	if r.Listening != "" {
		p.hello <- r.Listening
	}
	if r.Totals != nil {
		p.l.mu.Lock()
		p.l.sum.add(*r.Totals)
		p.l.mu.Unlock()
	}
	if r.Failure != "" {
		p.l.fail("%s: %s", p.l.name, r.Failure)
	}
	if r.Cut != "" && !p.killed.is() {
		p.l.fail("%s: nobody was killed, but: %s", p.l.name, r.Cut)
	}
}

// stop lets a process come to its end.
func (p *process) stop() {
	p.look()
	p.stdin.Close() //nolint:errcheck // it may be dead
	select {
	case err := <-p.ended:
		if err != nil && !p.killed.is() {
			p.l.fail("%s: an agent ended with %v", p.l.name, err)
		}
	case <-time.After(patience):
		p.l.fail("%s: an agent does not end", p.l.name)
		p.cmd.Process.Kill() //nolint:errcheck // it may just have ended
		<-p.ended            //nolint:errcheck // it was killed
	}
}

var resident = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// look notes how much memory a process had at most.
func (p *process) look() {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return // dead
	}
	if m := resident.FindSubmatch(text); m != nil {
		kib, _ := strconv.ParseInt(string(m[1]), 10, 64) // a number, as matched
		p.l.mu.Lock()
		p.l.resident = max(p.l.resident, kib<<10)
		p.l.mu.Unlock()
	}
}

// run runs pairs of processes until the deadline.
func (l *lane) run(deadline time.Time) error {
	for time.Now().Before(deadline) && l.failed() < 20 {
		k := &killed{}
		s, err := l.start(l.place.server, k, job{Listen: l.place.listen, Blocking: l.blocking})
		if err != nil {
			return err
		}
		var address string
		select {
		case address = <-s.hello:
		case <-time.After(patience):
			s.stop()
			return errors.New("a server is not up in time")
		}
		c, err := l.start(l.place.client, k, job{Connect: address, Workers: workers, Seed: l.r.Uint64(), Blocking: l.blocking, Flip: l.flip})
		if err != nil {
			s.stop()
			return err
		}
		l.mu.Lock()
		l.agents += 2
		l.mu.Unlock()
		time.Sleep(min(time.Until(deadline), time.Duration(100+l.r.IntN(2000))*time.Millisecond))
		if l.r.IntN(2) == 0 {
			victim := []*process{c, s}[l.r.IntN(2)]
			victim.look()
			k.set()
			victim.cmd.Process.Kill() //nolint:errcheck // if it is dead already, that shows as such
			l.mu.Lock()
			l.kills++
			l.mu.Unlock()
		}
		c.stop() // a client that waits for a dead server is told by the kernel
		s.stop()
	}
	return nil
}

// newNetns makes a namespace, on a thread that is thrown away.
func newNetns(t *testing.T) (*os.File, *netlink.Handle) {
	t.Helper()
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("make a network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.file.Close() }) //nolint:errcheck // read only
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(r.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	return r.file, nl
}

// newVeth makes two namespaces joined by a veth pair.
func newVeth(t *testing.T) place {
	t.Helper()
	a, an := newNetns(t)
	b, bn := newNetns(t)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "veth0"})
	veth.PeerName = "veth0"
	veth.PeerNamespace = netlink.NsFd(int(b.Fd()))
	if err := an.LinkAdd(veth); err != nil {
		t.Fatalf("add a veth pair: %v", err)
	}
	for nl, prefix := range map[*netlink.Handle]string{an: "10.77.77.1/30", bn: "10.77.77.2/30"} {
		p := netip.MustParsePrefix(prefix)
		for _, name := range []string{"lo", "veth0"} {
			l, err := nl.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if name == "veth0" {
				addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
				if err := nl.AddrAdd(l, addr); err != nil {
					t.Fatalf("add %v: %v", p, err)
				}
			}
			if err := nl.LinkSetUp(l); err != nil {
				t.Fatal(err)
			}
		}
	}
	return place{"veth", a, b, "10.77.77.2:0"}
}

var loopback = place{name: "loopback", listen: "127.0.0.1:0"}

// memory at rest, in bytes.
type memory struct{ tcp, kernel int64 }

func readMemory() (m memory, err error) {
	find := func(file, pattern string, unit int64) int64 {
		text, e := os.ReadFile(file)
		if e != nil {
			err = errors.Join(err, e)
			return 0
		}
		f := regexp.MustCompile(pattern).FindSubmatch(text)
		if f == nil {
			err = errors.Join(err, fmt.Errorf("%s has no %s", file, pattern))
			return 0
		}
		n, e := strconv.ParseInt(string(f[1]), 10, 64)
		err = errors.Join(err, e)
		return n * unit
	}
	m.tcp = find("/proc/net/sockstat", `TCP: .*mem (\d+)`, int64(os.Getpagesize()))
	m.kernel = find("/proc/meminfo", `SUnreclaim:\s+(\d+) kB`, 1<<10)
	return m, err
}

// seeded prints the seed of this run.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-soak.seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// drive runs all lanes at once until the deadline.
func drive(t *testing.T, lanes []*lane, deadline time.Time) {
	t.Helper()
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() {
			if err := l.run(deadline); err != nil {
				l.fail("%s: %v", l.name, err)
			}
		})
	}
	wg.Wait()
}

func TestSoak(t *testing.T) {
	need(t)
	r := seeded(t)
	book := &ledger{}
	veth := newVeth(t)
	var lanes []*lane
	// A queue that holds the largest message, and one that spills all the time.
	sessions := map[string]*node.Session{}
	for _, o := range []struct {
		name string
		opts node.SessionOptions
	}{{"default queue", node.SessionOptions{}}, {"queue of 64 KiB", node.SessionOptions{MaxQueue: 64 << 10}}} {
		s, err := node.NewSession(o.opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Errorf("close the session with a %s: %v", o.name, err)
			}
		})
		sessions[o.name] = s
		for _, p := range []place{loopback, veth} {
			lanes = append(lanes, &lane{ledger: book, name: p.name + ", " + o.name, place: p, cgroup: s.CgroupFD(),
				r: rand.New(rand.NewPCG(r.Uint64(), 2))})
		}
	}

	lanes = append(lanes, &lane{ledger: book, name: "loopback, blocking", place: loopback, blocking: true,
		cgroup: sessions["default queue"].CgroupFD(), r: rand.New(rand.NewPCG(r.Uint64(), 2))})

	rounds := max(rests, int(soakFor.Seconds())/longest)
	var first, last memory
	start := time.Now()
	for round := range rounds {
		drive(t, lanes, start.Add(*soakFor*time.Duration(round+1)/time.Duration(rounds)))
		for name, s := range sessions {
			empty(t, name, s)
		}
		last = settled(t, round, first)
		if round == 0 {
			first = last
		}
		if book.failed() > 0 || t.Failed() {
			break
		}
		if rounds > rests {
			t.Logf("%v: %d connections, %d MB checked; at rest: TCP %d KiB, kernel %d MiB", time.Since(start).Round(time.Second),
				book.sum.Connections, book.sum.Bytes/1e6, last.tcp>>10, last.kernel>>20)
		}
	}
	took := time.Since(start)

	for _, f := range book.failures {
		t.Error(f)
	}
	if book.resident > maxResident {
		t.Errorf("an agent had %d MiB", book.resident>>20)
	}
	s := book.sum
	if s.Connections == 0 || s.HalfClosed == 0 || s.PingPong == 0 || s.Slow == 0 || s.Resets == 0 || book.kills == 0 && *soakFor >= 10*time.Second {
		t.Errorf("something never happened: %+v, %d kills", s, book.kills)
	}
	t.Logf("%v: %d connections, %.0f a second; %d MB received and checked, %.0f MB/s", took.Round(time.Second),
		s.Connections, float64(s.Connections)/took.Seconds(), s.Bytes/1e6, float64(s.Bytes)/1e6/took.Seconds())
	t.Logf("%d processes, %d kills, %d ends cut by them; %d half-closes, %d ping-pongs, %d slow readers, %d resets, %d ends that saw one",
		book.agents, book.kills, s.Cut, s.HalfClosed, s.PingPong, s.Slow, s.Resets, s.WereReset)
	t.Logf("at rest, first and last: TCP %d and %d KiB, unreclaimable kernel memory %d and %d MiB; an agent had %d MiB at most",
		first.tcp>>10, last.tcp>>10, first.kernel>>20, last.kernel>>20, book.resident>>20)
	for name, session := range sessions {
		stats, err := session.Stats()
		if err != nil {
			t.Fatal(err)
		}
		checkStats(t, name, stats, book.kills)
	}
}

// checkStats wants a session that failed nowhere, moved bytes, and can account for
// every connection, except where a kill took the server's half in the middle of
// the handshake: the client's was seen, and then neither joined nor refused.
func checkStats(t *testing.T, name string, s accel.Stats, kills uint64) {
	t.Helper()
	refused := uint64(0)
	for _, n := range s.NotJoined {
		refused += n
	}
	if len(s.Faults) > 0 || s.Joined == 0 || s.Redirected.Bytes == 0 ||
		s.Joined+refused > s.Connections || s.Joined+refused+kills < s.Connections {
		t.Errorf("%s: %+v", name, s)
	}
	t.Logf("%s: %d of %d connections joined, not joined %v, left early %v; socket to socket %d MB in %d messages, by the stack %v; %d resets for unread bytes",
		name, s.Joined, s.Connections, s.NotJoined, s.Left, s.Redirected.Bytes/1e6, s.Redirected.Messages, s.Stack, s.Resets)
}

// empty wants nothing left of any connection in a session's tables.
func empty(t *testing.T, name string, s *node.Session) {
	t.Helper()
	var late []accel.Conn
	start := time.Now()
	for deadline := start.Add(patience); ; time.Sleep(20 * time.Millisecond) {
		conns, err := s.Conns()
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); len(conns) == 0 {
			if late != nil {
				t.Logf("%s: empty %v after the last process, the last was %+v", name, took.Round(time.Millisecond), late[0])
			}
			return
		} else if took > time.Second {
			late = conns
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %d sockets left in the table at rest, such as %+v", name, len(conns), conns[0])
			return
		}
	}
}

// settled reads the memory at rest; it may take a moment to get there.
func settled(t *testing.T, round int, first memory) memory {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		m, err := readMemory()
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 || m.tcp <= first.tcp+tcpGrowth && m.kernel <= first.kernel+kernelGrowth {
			if took := patience - time.Until(deadline); took > time.Second {
				t.Logf("memory settled after %v", took.Round(time.Millisecond))
			}
			return m
		}
		if time.Now().After(deadline) {
			t.Errorf("memory grew: TCP from %d to %d KiB, the kernel's from %d to %d MiB", first.tcp>>10, m.tcp>>10, first.kernel>>20, m.kernel>>20)
			return m
		}
	}
}

// One changed byte is seen.
func TestSoakNoticesAFlippedByte(t *testing.T) {
	need(t)
	l := &lane{ledger: &ledger{}, name: "flipped", place: loopback, cgroup: -1, flip: true, r: seeded(t)}
	drive(t, []*lane{l}, time.Now().Add(2*time.Second))
	if l.failed() == 0 {
		t.Fatalf("nothing was noticed in %d connections", l.sum.Connections)
	}
	t.Logf("%d connections; the first: %s", l.sum.Connections, l.failures[0])
}

// The unguarded control does not survive the same traffic.
func TestSoakControl(t *testing.T) {
	need(t)
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(own, "shunt-soak-control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) //nolint:errcheck // a directory
	naive, err := bench.AttachNaive(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := naive.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lane{ledger: &ledger{}, name: "control", place: loopback, blocking: true, cgroup: int(f.Fd()), r: seeded(t)}
	drive(t, []*lane{l}, time.Now().Add(3*time.Second))
	if l.failed() == 0 {
		t.Fatalf("the control passed: %d connections", l.sum.Connections)
	}
	t.Logf("%d connections, %d failures; the first: %s", l.sum.Connections, l.failed(), l.failures[0])
}
