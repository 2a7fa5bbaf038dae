// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PeerCommand is the first argument with which a bench starts its own binary;
// whoever embeds this package passes the arguments after it to [PeerMain].
const PeerCommand = "bench-peer"

// Workloads of a peer.
const (
	WorkloadRR     = "rr"     // request and response of the same size, one at a time
	WorkloadStream = "stream" // one direction, writes of a fixed size
	WorkloadBidir  = "bidir"  // a stream in both directions at once
	WorkloadMany   = "rr×64"  // request and response on 64 connections, one event loop at either end
	WorkloadSetup  = "setup"  // connect, one request and response, close
	// rr to a server that is not accelerated: what it costs others
	WorkloadRemote = "remote"
)

const (
	minSize     = 16         // a counter at either end of a message
	lastMessage = 1 << 63    // set in the counter of the message that ends a stream
	readBuffer  = 256 * 1024 // bytes a stream's receiver asks for at once
	replySize   = 24         // what the receiver answers to the last message
)

// PeerResult is what the client prints, one JSON line. The window is the time
// after the warm-up, taken at the client, for streams at each receiver.
type PeerResult struct {
	Workload string  `json:"workload"`
	Size     int     `json:"size"`           // bytes per message
	Rate     float64 `json:"rate"`           // round trips or connections per second; streams: bytes per second, bidir of both directions
	Seconds  float64 `json:"seconds"`        // length of the window
	Verified uint64  `json:"verified_bytes"` // received, counted and checked, warm-up included
}

type peerHello struct {
	Listening string `json:"listening"`
}

type peer struct {
	role     string
	addr     string
	workload string
	size     int
	warmup   time.Duration
	duration time.Duration
	timeout  time.Duration
	blocking bool
	cpus     string
	netns    string
	out      io.Writer
}

// init keeps a peer on its first thread: whoever looks for the network namespace
// of a process (/proc/PID/ns/net) sees that of the first one.
func init() {
	if len(os.Args) > 1 && os.Args[1] == PeerCommand {
		runtime.LockOSThread()
	}
}

// PeerMain runs one end of a measurement: "server" prints its address as JSON,
// serves one connection and returns; "client" prints a [PeerResult]. It takes
// over its process: it pins the CPU and turns the garbage collector off.
func PeerMain(args []string, out io.Writer) error {
	p := peer{out: out}
	flags := flag.NewFlagSet(PeerCommand, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&p.addr, "address", "tcp:127.0.0.1:0", "tcp:IP:PORT or unix:PATH")
	flags.StringVar(&p.workload, "workload", WorkloadRR, "rr, stream, bidir, rr×64 or setup")
	flags.IntVar(&p.size, "size", 64, "bytes per message")
	flags.DurationVar(&p.warmup, "warmup", 50*time.Millisecond, "time before the window")
	flags.DurationVar(&p.duration, "duration", time.Second, "length of the window")
	flags.DurationVar(&p.timeout, "timeout", 5*time.Second, "bound of every wait")
	flags.BoolVar(&p.blocking, "blocking", false, "blocking calls instead of epoll")
	flags.StringVar(&p.cpus, "cpus", "", "CPU list to run on, such as 0 or 0,2")
	flags.StringVar(&p.netns, "netns", "", "network namespace to enter first, a path")
	if len(args) == 0 {
		return fmt.Errorf("%s: want server or client", PeerCommand)
	}
	p.role = args[0]
	if err := flags.Parse(args[1:]); err != nil {
		return fmt.Errorf("%s: %w", PeerCommand, err)
	}
	if p.size < minSize {
		return fmt.Errorf("%s: size %d is below %d", PeerCommand, p.size, minSize)
	}
	single := p.workload == WorkloadRR || p.workload == WorkloadStream
	if !single && !slices.Contains([]string{WorkloadBidir, WorkloadMany, WorkloadSetup}, p.workload) {
		return fmt.Errorf("%s: no workload %q", PeerCommand, p.workload)
	}

	if p.blocking && !single {
		return fmt.Errorf("%s: %s is for event loops only", PeerCommand, p.workload)
	}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	debug.SetGCPercent(-1)
	if err := pin(p.cpus); err != nil {
		return err
	}
	if err := enterNetns(p.netns); err != nil {
		return err
	}
	switch p.role {
	case "server":
		return p.serve()
	case "client":
		return p.drive()
	}
	return fmt.Errorf("%s: no role %q", PeerCommand, p.role)
}

func (p *peer) serve() error {
	listener, family, bound, err := listen(p.addr, p.blocking, p.timeout)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(p.out).Encode(peerHello{bound}); err != nil {
		return err
	}
	switch p.workload {
	case WorkloadMany:
		return p.echoMany(listener)
	case WorkloadSetup:
		return p.serveSetUps(listener)
	}
	s, err := accept(listener, family, p.blocking, p.timeout)
	if err != nil {
		return err
	}
	switch p.workload {
	case WorkloadRR:
		return p.echo(s)
	case WorkloadBidir:
		return p.both(s, nil)
	}
	return p.sink(s)
}

func (p *peer) drive() error {
	r := PeerResult{Workload: p.workload, Size: p.size}
	var err error
	switch p.workload {
	case WorkloadMany:
		err = p.pingMany(&r)
	case WorkloadSetup:
		err = p.setUp(&r)
	default:
		err = p.driveOne(&r)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(p.out).Encode(r)
}

func (p *peer) driveOne(r *PeerResult) error {
	s, err := connect(p.addr, p.blocking, p.timeout)
	if err != nil {
		return err
	}
	switch p.workload {
	case WorkloadRR:
		return p.ping(s, r)
	case WorkloadBidir:
		return p.both(s, r)
	}
	return p.source(s, r)
}

// ping sends a message and waits for it to come back, until the time is over.
func (p *peer) ping(s *socket, r *PeerResult) error {
	out, in := make([]byte, p.size), make([]byte, p.size)
	var counter, first uint64
	var windowStart time.Duration
	for start := time.Now(); ; {
		mark(out, counter)
		if err := s.sendAll(out); err != nil {
			return err
		}
		if _, err := s.receiveFull(in); err != nil {
			return err
		}
		if err := check(in, counter); err != nil {
			return err
		}
		counter++
		now := time.Since(start)
		if now < p.warmup {
			continue
		}
		if first == 0 {
			windowStart, first = now, counter
		}
		if now >= p.warmup+p.duration && counter > first {
			r.Seconds = (now - windowStart).Seconds()
			r.Rate = float64(counter-first) / r.Seconds
			r.Verified = counter * uint64(p.size)
			return nil
		}
	}
}

// echo answers every message of ping with itself.
func (p *peer) echo(s *socket) error {
	msg := make([]byte, p.size)
	for counter := uint64(0); ; counter++ {
		if end, err := s.receiveFull(msg); end {
			return nil
		} else if err != nil {
			return err
		}
		if err := check(msg, counter); err != nil {
			return err
		}
		if err := s.sendAll(msg); err != nil {
			return err
		}
	}
}

// source writes messages until the time is over, marks the last one, and takes
// the receiver's account of what came in.
func (p *peer) source(s *socket, r *PeerResult) error {
	msg := make([]byte, p.size)
	// A clock read is not free beside a write of a few hundred bytes.
	clockEvery := uint64(max(1, 16384/p.size))
	start, over := time.Now(), false
	for counter := uint64(0); !over; counter++ {
		if counter%clockEvery == 0 && time.Since(start) >= p.warmup+p.duration {
			over = true
			counter |= lastMessage
		}
		mark(msg, counter)
		if err := s.sendAll(msg); err != nil {
			return err
		}
	}
	var reply [replySize]byte
	if _, err := s.receiveFull(reply[:]); err != nil {
		return fmt.Errorf("the receiver's account: %w", err)
	}
	bytes := binary.LittleEndian.Uint64(reply[:])
	r.Seconds = time.Duration(binary.LittleEndian.Uint64(reply[8:])).Seconds()
	r.Verified = binary.LittleEndian.Uint64(reply[16:])
	if r.Seconds <= 0 {
		return errors.New("the receiver took no time at all")
	}
	r.Rate = float64(bytes) / r.Seconds
	return nil
}

// sink reads and checks a stream until its last message, then reports to source.
func (p *peer) sink(s *socket) error {
	buf := make([]byte, readBuffer)
	v := verifier{size: p.size}
	var start time.Time
	var firstBytes, startBytes, windowBytes uint64
	var windowStart, windowLength time.Duration
	for !v.done {
		n, err := s.receive(buf)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%w after %d bytes of a stream", errClosed, v.total)
		}
		if err := v.add(buf[:n]); err != nil {
			return err
		}
		if start.IsZero() {
			start, firstBytes = time.Now(), v.total
		}
		switch now := time.Since(start); {
		case now < p.warmup:
		case startBytes == 0:
			windowStart, startBytes = now, v.total
		case now <= p.warmup+p.duration || windowBytes == 0:
			windowLength, windowBytes = now-windowStart, v.total-startBytes
		}
	}
	if windowBytes == 0 {
		// Off the CPU for the whole window, on a busy machine: what came after the first read is all there is.
		windowLength, windowBytes = time.Since(start), v.total-firstBytes
	}
	var reply [replySize]byte
	binary.LittleEndian.PutUint64(reply[:], windowBytes)
	binary.LittleEndian.PutUint64(reply[8:], uint64(windowLength))
	binary.LittleEndian.PutUint64(reply[16:], v.total)
	if err := s.sendAll(reply[:]); err != nil {
		return err
	}
	// The client closes first; leaving before it has read would be a reset on some paths.
	n, err := s.receive(buf)
	if err != nil {
		return fmt.Errorf("after the end of a stream: %w", err)
	}
	if n != 0 {
		return fmt.Errorf("%d bytes after the end of a stream", n)
	}
	return nil
}

// mark writes the counter to both ends of a message.
func mark(msg []byte, counter uint64) {
	binary.LittleEndian.PutUint64(msg, counter)
	binary.LittleEndian.PutUint64(msg[len(msg)-8:], counter)
}

func check(msg []byte, counter uint64) error {
	head, tail := binary.LittleEndian.Uint64(msg), binary.LittleEndian.Uint64(msg[len(msg)-8:])
	if head != counter || tail != counter {
		return fmt.Errorf("message %d arrived as %#x…%#x", counter, head, tail)
	}
	return nil
}

// verifier follows a byte stream of marked messages, whatever pieces it comes in.
type verifier struct {
	size    int
	total   uint64
	counter uint64
	at      int // offset in the current message
	ends    [16]byte
	done    bool
}

func (v *verifier) add(p []byte) error {
	v.total += uint64(len(p))
	for len(p) > 0 {
		if v.done {
			return fmt.Errorf("%d bytes after the last message", len(p))
		}
		if v.at == 0 && len(p) >= v.size {
			copy(v.ends[:8], p[:8])
			copy(v.ends[8:], p[v.size-8:v.size])
			p = p[v.size:]
		} else {
			n := min(len(p), v.size-v.at)
			v.part(p[:n])
			p = p[n:]
			if v.at += n; v.at < v.size {
				return nil
			}
			v.at = 0
		}
		counter := v.counter
		if binary.LittleEndian.Uint64(v.ends[:])&lastMessage != 0 {
			v.done = true
			counter |= lastMessage
		}
		if err := check(v.ends[:], counter); err != nil {
			return err
		}
		v.counter++
	}
	return nil
}

// part takes what a piece of a message at v.at holds of its first and last eight bytes.
func (v *verifier) part(p []byte) {
	if v.at < 8 {
		copy(v.ends[v.at:8], p)
	}
	tail := v.size - 8
	if v.at+len(p) <= tail {
		return
	}
	if v.at < tail {
		p = p[tail-v.at:]
		copy(v.ends[8:], p)
		return
	}
	copy(v.ends[8+v.at-tail:], p)
}

// pin restricts every thread of the process to a list of CPUs.
func pin(list string) error {
	if list == "" {
		return nil
	}
	var set unix.CPUSet
	for _, field := range strings.Split(list, ",") {
		cpu, err := strconv.Atoi(field)
		if err != nil || cpu < 0 {
			return fmt.Errorf("CPU list %q: want numbers such as 0,2", list)
		}
		set.Set(cpu)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin to CPU %s: %w", list, err)
		}
	}
	return nil
}

func enterNetns(path string) error {
	if path == "" {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", path, err)
	}
	return nil
}
