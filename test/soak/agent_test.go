// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// agentEnv holds the job of this binary as an agent, in JSON.
const agentEnv = "SHUNT_SOAK_AGENT"

// job of one process: an end of many connections.
type job struct {
	Listen  string // server: the address to listen on
	Connect string // client: the server's
	Workers int    // client: connections at a time
	Seed    uint64
	// Blocking sockets and calls; shunt leaves these alone.
	Blocking bool
	Flip     bool // client: change a byte now and then, as a proof that it would be seen
}

const (
	maxSize   = 1 << 20 // bytes of one direction of a connection
	maxChunk  = 128 << 10
	slowChunk = 12 << 10
	period    = 1048573 // a prime: chunks of round sizes never fall on the same bytes again
	magic     = 0x736f616b2d736f61
	header    = 16
	hang      = 20 * time.Second // a connection that takes this long hangs
	flipEvery = 16               // connections
)

// noise repeats every period bytes; what follows saves wrapping around.
var noise = func() []byte {
	b := make([]byte, period+maxChunk)
	r := rand.NewChaCha8([32]byte{7})
	r.Read(b[:period]) //nolint:errcheck // never fails
	copy(b[period:], b)
	return b
}()

// piece is the part of a stream at offset: every stream has bytes of its own.
func piece(stream uint64, offset, n int) []byte {
	at := (stream%period*999983 + uint64(offset)) % period
	return noise[at : at+uint64(n)]
}

// plan of a connection. Both ends make it from the same seed.
type plan struct {
	Seed     uint64
	PingPong []int  // sizes of messages, each answered by as much; else a stream each way
	Size     [2]int // bytes that the client and the server send
	Slow     [2]bool
	Wait     [2]bool // the end shuts down only after it has read everything
	Reset    int     // -1, or the end that aborts
	At       int     // after having sent this many bytes
}

const (
	client = 0
	server = 1
)

func newPlan(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, magic))
	p := plan{Seed: seed, Reset: -1}
	if r.IntN(3) == 0 {
		for range 1 + r.IntN(60) {
			n := logUniform(r, 32<<10)
			p.PingPong = append(p.PingPong, n)
			p.Size[client] += n
			p.Size[server] += n
		}
	} else {
		p.Size = [2]int{logUniform(r, maxSize), logUniform(r, maxSize)}
		if r.IntN(4) == 0 { // as large as it gets, both ways
			p.Size = [2]int{maxSize - r.IntN(1000), maxSize - r.IntN(1000)}
		}
	}
	p.Slow = [2]bool{r.IntN(8) == 0, r.IntN(8) == 0}
	p.Wait = [2]bool{r.IntN(2) == 0, false} // both would wait for each other
	if r.IntN(2) == 0 {
		p.Wait = [2]bool{false, p.Wait[client]}
	}
	if r.IntN(8) == 0 {
		p.Reset = r.IntN(2)
		p.At = r.IntN(p.Size[p.Reset] + 1)
	}
	return p
}

// logUniform is 1 to limit: as many below 1 KiB as above.
func logUniform(r *rand.Rand, limit int) int {
	bits := 0
	for 1<<bits < limit {
		bits++
	}
	return min(limit, 1+r.IntN(1<<r.IntN(bits+1)))
}

// totals of an agent since it last told.
type totals struct {
	Connections uint64 `json:",omitempty"` // that came to an end, counted at the client
	Bytes       uint64 `json:",omitempty"` // received and checked
	HalfClosed  uint64 `json:",omitempty"` // ends that shut down while the other still sent
	PingPong    uint64 `json:",omitempty"`
	Slow        uint64 `json:",omitempty"` // ends that read slowly
	Resets      uint64 `json:",omitempty"` // ends that aborted
	WereReset   uint64 `json:",omitempty"` // ends that saw their peer abort, as planned
	Cut         uint64 `json:",omitempty"` // ends whose connection broke: only a kill explains that
}

func (t *totals) add(o totals) {
	for _, p := range []struct {
		to   *uint64
		from uint64
	}{
		{&t.Connections, o.Connections}, {&t.Bytes, o.Bytes}, {&t.HalfClosed, o.HalfClosed}, {&t.PingPong, o.PingPong},
		{&t.Slow, o.Slow}, {&t.Resets, o.Resets}, {&t.WereReset, o.WereReset}, {&t.Cut, o.Cut},
	} {
		*p.to += p.from
	}
}

// report is a line of an agent's.
type report struct {
	Listening string `json:",omitempty"`
	Totals    *totals
	Cut       string `json:",omitempty"` // a connection broke
	Failure   string `json:",omitempty"` // nothing explains this
}

type agent struct {
	job
	mu  sync.Mutex
	sum totals
	out *json.Encoder
}

func (a *agent) tell(r report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out.Encode(r) //nolint:errcheck // the parent died, and ends this process
}

func (a *agent) count(f func(*totals)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.sum)
}

func (a *agent) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sum != (totals{}) {
		sum := a.sum
		a.out.Encode(report{Totals: &sum}) //nolint:errcheck // as above
		a.sum = totals{}
	}
}

// serveAgent does a job until its stdin ends; connections that stand come to their end.
func serveAgent(text string) error {
	a := &agent{out: json.NewEncoder(os.Stdout)}
	if err := json.Unmarshal([]byte(text), &a.job); err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what counts
		close(over)
	}()
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			a.flush()
		}
	}()
	defer a.flush()
	if a.Listen != "" {
		return a.serve(over)
	}
	a.drive(over)
	return nil
}

func (a *agent) serve(over <-chan struct{}) error {
	accept, address, stop, err := a.listen()
	if err != nil {
		return err
	}
	a.tell(report{Listening: address})
	go func() {
		<-over
		stop()
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() { a.converse(c, server, 0) })
	}
}

func (a *agent) listen() (accept func() (conn, error), address string, stop func(), err error) {
	if a.Blocking {
		l, err := listenBlocking(a.Listen)
		if err != nil {
			return nil, "", nil, err
		}
		return l.accept, l.addr, l.close, nil
	}
	l, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return nil, "", nil, err
	}
	accept = func() (conn, error) {
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	return accept, l.Addr().String(), func() { l.Close() }, nil //nolint:errcheck // ends accept
}

func (a *agent) dial() (conn, error) {
	if a.Blocking {
		return dialBlocking(a.Connect)
	}
	c, err := net.DialTimeout("tcp", a.Connect, hang)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (a *agent) drive(over <-chan struct{}) {
	var wg sync.WaitGroup
	for worker := range a.Workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(a.Seed, uint64(worker)))
			for {
				select {
				case <-over:
					return
				default:
				}
				c, err := a.dial()
				if err != nil {
					a.broke(nil, client, plan{}, fmt.Errorf("connect: %w", err))
					time.Sleep(10 * time.Millisecond) // the server is dead, and this one about to be stopped
					continue
				}
				a.converse(c, client, r.Uint64())
				a.count(func(t *totals) { t.Connections++ })
			}
		})
	}
	wg.Wait()
}

// damage is what no reset or kill explains.
type damage struct{ error }

// converse is one end of a connection.
func (a *agent) converse(c conn, me int, seed uint64) {
	defer c.Close() //nolint:errcheck // it may have been aborted
	if err := c.SetDeadline(time.Now().Add(hang)); err != nil {
		a.tell(report{Failure: err.Error()})
		return
	}
	var p plan
	err := func() error {
		var head [header]byte
		if me == client {
			binary.LittleEndian.PutUint64(head[:], magic)
			binary.LittleEndian.PutUint64(head[8:], seed)
			if _, err := c.Write(head[:]); err != nil {
				return err
			}
		} else {
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return err
			}
			if binary.LittleEndian.Uint64(head[:]) != magic {
				return damage{fmt.Errorf("the first bytes are %x", head)}
			}
			seed = binary.LittleEndian.Uint64(head[8:])
		}
		p = newPlan(seed)
		e := &end{agent: a, conn: c, plan: p, me: me, r: rand.New(rand.NewPCG(seed, uint64(me)))}
		if p.PingPong != nil {
			return e.pingPong()
		}
		return e.streams()
	}()
	if err != nil {
		a.broke(c, me, p, err)
	}
}

// broke sorts out how a connection ended badly.
func (a *agent) broke(c conn, me int, p plan, err error) {
	var d damage
	text := fmt.Sprintf("%s, plan %+v: %v", []string{"client", "server"}[me], p, err)
	if len(p.PingPong) > 3 {
		p.PingPong = p.PingPong[:3]
		text = fmt.Sprintf("%s, plan %+v (first messages only): %v", []string{"client", "server"}[me], p, err)
	}
	reset := errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	switch {
	case errors.Is(err, errAborted):
		a.count(func(t *totals) { t.Resets++ })
	case errors.As(err, &d):
		a.tell(report{Failure: text})
	case errors.Is(err, os.ErrDeadlineExceeded):
		a.tell(report{Failure: "hangs: " + text + "\n" + sockets(c)})
	case reset && p.Seed != 0 && p.Reset == 1-me:
		a.count(func(t *totals) { t.WereReset++ })
	case reset, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNREFUSED):
		a.count(func(t *totals) { t.Cut++ })
		a.tell(report{Cut: text})
	default:
		a.tell(report{Failure: text})
	}
}

// sockets says what the kernel knows of both ends of a connection that hangs.
func sockets(c conn) string {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return ""
	}
	_, local, _ := net.SplitHostPort(tcp.LocalAddr().String())   //nolint:errcheck // the kernel's own text
	_, remote, _ := net.SplitHostPort(tcp.RemoteAddr().String()) //nolint:errcheck // as above
	filter := fmt.Sprintf("( sport = :%[1]s and dport = :%[2]s ) or ( sport = :%[2]s and dport = :%[1]s )", local, remote)
	out, err := exec.Command("ss", "-Htanoimep", filter).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

var errAborted = errors.New("aborted as planned")

type end struct {
	*agent
	conn
	plan
	me        int
	r         *rand.Rand // of the sending side
	sent, got int
	pause     int // a slow reader sleeps when it has got this much
	allGot    atomic.Bool
	aborted   atomic.Bool
}

func (e *end) stream(who int) uint64 { return e.Seed*2 + uint64(who) }

// send writes n more bytes in writes of random sizes. It aborts where planned.
func (e *end) send(n int) error {
	for stop := e.sent + n; e.sent < stop; {
		chunk := min(stop-e.sent, maxChunk, logUniform(e.r, maxChunk))
		if e.Reset == e.me {
			if e.sent >= e.At {
				return e.abort()
			}
			chunk = min(chunk, e.At-e.sent)
		}
		b := piece(e.stream(e.me), e.sent, chunk)
		if e.Flip && e.me == client && e.Seed%flipEvery == 0 && e.sent == 0 {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
		}
		w, err := e.Write(b)
		e.sent += w
		if err != nil {
			return e.explain(fmt.Errorf("send at %d of %d: %w", e.sent, e.Size[e.me], err))
		}
	}
	if e.Reset == e.me && e.sent == e.Size[e.me] {
		return e.abort()
	}
	return nil
}

func (e *end) abort() error {
	e.aborted.Store(true)
	if err := e.SetLinger(0); err != nil {
		return e.explain(err)
	}
	e.Close() //nolint:errcheck // as it is meant
	return errAborted
}

// explain turns what follows from our own abort into that.
func (e *end) explain(err error) error {
	if e.aborted.Load() {
		return errAborted
	}
	return err
}

// receive reads and checks n more bytes.
func (e *end) receive(n int, buf []byte) error {
	for stop := e.got + n; e.got < stop; {
		b := buf[:min(len(buf), stop-e.got)]
		if e.Slow[e.me] {
			b = b[:min(len(b), slowChunk)]
			if e.got >= e.pause {
				time.Sleep(time.Millisecond)
				e.pause = e.got + slowChunk
			}
		}
		k, err := e.Read(b)
		if err := e.check(b[:k]); err != nil {
			return err
		}
		if err != nil {
			return e.explain(e.early(fmt.Errorf("received %d of %d: %w", e.got, e.Size[1-e.me], err)))
		}
	}
	return nil
}

// early is an end of the stream before its last byte. If the peer was to abort,
// it had to be a reset.
func (e *end) early(err error) error {
	if errors.Is(err, io.EOF) && e.Reset == 1-e.me && e.got > 0 {
		return fmt.Errorf("the peer's abort shows as a clean end: %w", err)
	}
	return err
}

func (e *end) check(b []byte) error {
	want := piece(e.stream(1-e.me), e.got, len(b))
	if !bytes.Equal(b, want) {
		at := 0
		for b[at] == want[at] {
			at++
		}
		return damage{fmt.Errorf("wrong bytes from offset %d on: %x, want %x", e.got+at, b[at:min(len(b), at+8)], want[at:min(len(b), at+8)])}
	}
	e.got += len(b)
	e.count(func(t *totals) { t.Bytes += uint64(len(b)) })
	return nil
}

// finish reads the end of the stream: nothing may come after the last byte.
func (e *end) finish() error {
	var b [64]byte
	n, err := e.Read(b[:])
	if n > 0 {
		return damage{fmt.Errorf("%d bytes after the last one: %x", n, b[:n])}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return e.explain(fmt.Errorf("at the end: %w", err))
}

func (e *end) shut() error {
	if !e.allGot.Load() {
		e.count(func(t *totals) { t.HalfClosed++ })
	}
	if err := e.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return e.explain(err)
	} else if err != nil { // the peer has aborted
		return e.explain(unix.ECONNRESET)
	}
	return nil
}

// streams sends and receives at the same time.
func (e *end) streams() error {
	if e.Slow[e.me] {
		e.count(func(t *totals) { t.Slow++ })
	}
	received := make(chan error, 1)
	go func() {
		err := e.receive(e.Size[1-e.me], make([]byte, 64+rand.IntN(maxChunk)))
		if err == nil {
			e.allGot.Store(true)
		}
		received <- err
	}()
	err := e.send(e.Size[e.me])
	if err == nil && !e.Wait[e.me] {
		err = e.shut()
	}
	receiveErr := <-received
	if errors.Is(err, errAborted) {
		return err
	}
	var d damage
	if errors.As(receiveErr, &d) || err == nil {
		err = receiveErr
	}
	if err == nil && e.Wait[e.me] {
		err = e.shut()
	}
	if err == nil {
		err = e.finish()
	}
	return err
}

// pingPong sends messages in turn, the client first.
func (e *end) pingPong() error {
	buf := make([]byte, 32<<10)
	if e.me == client {
		e.count(func(t *totals) { t.PingPong++ })
	}
	for _, n := range e.PingPong {
		if e.me == client {
			if err := e.send(n); err != nil {
				return err
			}
		}
		if err := e.receive(n, buf); err != nil {
			return err
		}
		if e.me == server {
			if err := e.send(n); err != nil {
				return err
			}
		}
	}
	e.allGot.Store(true)
	if err := e.shut(); err != nil {
		return err
	}
	return e.finish()
}
