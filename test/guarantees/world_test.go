// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"errors"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/bench"
	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

var (
	patience = slowness * 15 * time.Second       // bound of every wait for something that must come
	quiet    = slowness * 300 * time.Millisecond // how long to look for what must not come
)

// slowness multiplies these on slow machines, such as emulated ones.
var slowness = func() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("SHUNT_TEST_PATIENCE")); err == nil && n > 0 {
		return time.Duration(n)
	}
	return 1
}()

// world is a cgroup whose sockets are plain, accelerated, or the control's.
type world struct {
	t       *testing.T
	name    string
	cgroup  int // -1: the test's own
	session *node.Session
}

func plain(t *testing.T) *world { return &world{t: t, name: "plain", cgroup: -1} }

// accelerated is closed at the end of the test, when its agents are gone: then
// there must be nothing left in it, and no helper call may have failed.
func accelerated(t *testing.T, opts node.SessionOptions) *world {
	t.Helper()
	need(t)
	s, err := node.NewSession(opts)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, name: "accelerated", cgroup: s.CgroupFD(), session: s}
	t.Cleanup(func() {
		if stats := w.stats(); len(stats.Faults) > 0 {
			t.Errorf("helper calls failed in the kernel half: %v", stats.Faults)
		} else if sum := total(stats.NotJoined) + stats.Joined; stats.Connections != sum {
			t.Errorf("%d connections, but %d joined and not joined: %+v", stats.Connections, sum, stats)
		}
		if t.Failed() {
			t.Logf("stats: %+v", w.stats())
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the session: %v", err)
		}
	})
	return w
}

// control is the unguarded "redirect everything".
func control(t *testing.T) *world {
	t.Helper()
	need(t)
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(own, "shunt-test-")
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
	t.Cleanup(func() { f.Close() })
	naive, err := bench.AttachNaive(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := naive.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, name: "control", cgroup: int(f.Fd())}
}

func total(m map[string]uint64) (sum uint64) {
	for _, n := range m {
		sum += n
	}
	return sum
}

func (w *world) stats() accel.Stats {
	w.t.Helper()
	s, err := w.session.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) conns() []accel.Conn {
	w.t.Helper()
	c, err := w.session.Conns()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// mustCarry fails a test that proved nothing: want pairs were joined (all of
// them), and bytes were redirected.
func (w *world) mustCarry(want uint64) accel.Stats {
	w.t.Helper()
	s := w.stats()
	if s.Joined != want || s.Redirected.Bytes == 0 {
		w.t.Errorf("joined %d of %d, redirected %d bytes: %+v", s.Joined, want, s.Redirected.Bytes, s)
	}
	return s
}

// agent is a process of the world that makes socket calls.
type agent struct {
	t     *testing.T
	world *world
	cmd   *exec.Cmd
	rpc   *rpc.Client
	netns uint64 // cookie
	done  bool
}

// agent starts one in a network namespace; nil is the test's own.
func (w *world) agent(ns *netns) *agent {
	w.t.Helper()
	need(w.t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"=1", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	if w.cgroup >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: w.cgroup}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	a := &agent{t: w.t, world: w, cmd: cmd}
	path := "/proc/thread-self/ns/net"
	if ns != nil {
		path = ns.path()
	}
	// A child is born in the namespace of the thread that makes it.
	err = kernel.InNetns(path, func() error {
		cookie, err := kernel.NetnsCookie()
		a.netns = cookie
		return errors.Join(err, cmd.Start())
	})
	if err != nil {
		w.t.Fatalf("start an agent: %v", err)
	}
	a.rpc = rpc.NewClient(duplex{out, in})
	w.t.Cleanup(a.kill)
	return a
}

type duplex struct {
	r interface {
		Read([]byte) (int, error)
		Close() error
	}
	w interface {
		Write([]byte) (int, error)
		Close() error
	}
}

func (d duplex) Read(p []byte) (int, error)  { return d.r.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.w.Write(p) }
func (d duplex) Close() error                { return errors.Join(d.w.Close(), d.r.Close()) }

// kill ends the process with SIGKILL and waits until it is gone.
func (a *agent) kill() {
	if a.done {
		return
	}
	a.done = true
	a.cmd.Process.Kill() //nolint:errcheck // it may have ended
	a.cmd.Wait()         //nolint:errcheck // killed
	a.rpc.Close()        //nolint:errcheck // as above
}

// pending is a call that runs.
type pending struct {
	a      *agent
	method string
	call   *rpc.Call
}

func (a *agent) begin(method string, args, reply any) pending {
	return pending{a, method, a.rpc.Go("Sys."+method, args, reply, make(chan *rpc.Call, 1))}
}

func (p pending) end(limit time.Duration) {
	p.a.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.call.Done:
		if p.call.Error != nil {
			p.a.t.Fatalf("%s in the %s world: %v", p.method, p.a.world.name, p.call.Error)
		}
	case <-timer.C:
		p.a.t.Fatalf("%s in the %s world took more than %v", p.method, p.a.world.name, limit)
	}
}

func (a *agent) call(method string, args any) Result {
	a.t.Helper()
	var r Result
	a.begin(method, args, &r).end(3 * patience)
	return r
}

// end is one end of a connection, or a socket on the way there.
type end struct {
	*agent
	fd     int
	name   netip.AddrPort
	stream uint64 // what this end sends
	sent   int64
	peer   *end
	got    int64 // of what the peer sends
}

func (e *end) send(n int64) Result { e.t.Helper(); return e.sendWith(n, 64<<10, patience) }

func (e *end) sendWith(n int64, chunk int, wait time.Duration) Result {
	e.t.Helper()
	r := e.call("Send", IOArgs{FD: e.fd, Stream: e.stream, Offset: e.sent, N: n, Chunk: chunk, Wait: wait})
	e.sent += r.N
	return r
}

func (e *end) recv(n int64) Result { e.t.Helper(); return e.recvWith(n, patience) }

func (e *end) recvWith(n int64, wait time.Duration) Result {
	e.t.Helper()
	r := e.call("Recv", IOArgs{FD: e.fd, Stream: e.peer.stream, Offset: e.got, N: n, Chunk: 64 << 10, Wait: wait})
	e.got += r.N
	return r
}

// mustSend and mustRecv fail the test unless all n bytes went.
func (e *end) mustSend(n int64) {
	e.t.Helper()
	if r := e.send(n); r.N != n {
		e.t.Fatalf("%s world: sent %v of %d", e.world.name, r, n)
	}
}

func (e *end) mustRecv(n int64) {
	e.t.Helper()
	if r := e.recv(n); r.N != n {
		e.t.Fatalf("%s world: received %v of %d", e.world.name, r, n)
	}
}

func (e *end) poll(events int16, wait time.Duration) int16 {
	e.t.Helper()
	return e.call("Poll", IOArgs{FD: e.fd, Events: events, Wait: wait}).Events
}

func (e *end) shutdown(how int) Result {
	e.t.Helper()
	return e.call("Shutdown", IOArgs{FD: e.fd, Value: how})
}
func (e *end) close() Result { e.t.Helper(); return e.call("Close", IOArgs{FD: e.fd}) }

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// listen opens a listener; port 0 is any.
func (a *agent) listen(s SocketArgs) *end {
	a.t.Helper()
	s.Listen = true
	if s.Family == 0 {
		s.Family = family(s.Bind.Addr())
	}
	r := a.call("Socket", s)
	return &end{agent: a, fd: r.FD, name: r.Name}
}

// socket opens one that connects; bind may be invalid.
func (a *agent) socket(s SocketArgs) *end {
	a.t.Helper()
	r := a.call("Socket", s)
	return &end{agent: a, fd: r.FD, name: r.Name}
}

func (e *end) connect(to netip.AddrPort) {
	e.t.Helper()
	r := e.call("Connect", IOArgs{FD: e.fd, Addr: to, Wait: patience})
	if r.Errno != 0 {
		e.t.Fatalf("%s world: connect to %v: %v", e.world.name, to, r.Errno)
	}
	e.name = r.Name
}

func (e *end) accept(blocking bool) *end {
	e.t.Helper()
	r := e.call("Accept", AcceptArgs{FD: e.fd, Blocking: blocking, Wait: patience})
	if r.Errno != 0 {
		e.t.Fatalf("%s world: accept: %v", e.world.name, r.Errno)
	}
	return &end{agent: e.agent, fd: r.FD, name: r.Name}
}

// pair is a connection.
type pair struct{ client, server *end }

var streams uint64

// couple makes two ends a pair, with streams that no other pair has.
func couple(client, server *end) *pair {
	streams += 2
	client.stream, server.stream = streams, streams+1
	client.peer, server.peer = server, client
	return &pair{client, server}
}

// dialOptions of dial. The zero value: non-blocking, on 127.0.0.1.
type dialOptions struct {
	blocking bool
	server   netip.AddrPort // where it listens
	target   netip.AddrPort // where the client connects to, if not there
	bind     netip.AddrPort // of the client
}

// dial makes a pair of a client's and a server's agent.
func dial(client, server *agent, o dialOptions) *pair {
	client.t.Helper()
	if !o.server.IsValid() {
		o.server = netip.MustParseAddrPort("127.0.0.1:0")
	}
	l := server.listen(SocketArgs{Bind: o.server, Backlog: 16, Blocking: o.blocking})
	defer l.close()
	to := l.name
	if o.target.IsValid() {
		to = netip.AddrPortFrom(o.target.Addr(), l.name.Port())
	}
	c := client.socket(SocketArgs{Family: family(to.Addr()), Bind: o.bind, Blocking: o.blocking})
	c.connect(to)
	return couple(c, l.accept(o.blocking))
}

// ping sends n bytes there and n bytes back.
func (p *pair) ping(n int64) {
	p.client.t.Helper()
	p.client.mustSend(n)
	p.server.mustRecv(n)
	p.server.mustSend(n)
	p.client.mustRecv(n)
}

// conn finds an end among the joined sockets.
func (e *end) conn() (accel.Conn, bool) {
	e.t.Helper()
	for _, c := range e.world.conns() {
		if c.Netns == e.netns && c.Local == e.name && c.Remote == e.peer.name {
			return c, true
		}
	}
	return accel.Conn{}, false
}

// settle uses the pair until both directions take the short path: the readers
// are proven, and the devices guarded. In other worlds it is two pings.
func (p *pair) settle() {
	p.client.t.Helper()
	p.ping(100)
	p.ping(100)
	if p.client.world.session == nil {
		return
	}
	for deadline := time.Now().Add(patience); ; {
		c, _ := p.client.conn()
		s, _ := p.server.conn()
		if c.Path == "short" && s.Path == "short" && c.Redirected.Bytes > 0 && s.Redirected.Bytes > 0 {
			return
		}
		if time.Now().After(deadline) {
			p.client.t.Fatalf("not on the short path: client %+v, server %+v, stats %+v", c, s, p.client.world.stats())
		}
		p.ping(100)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}
