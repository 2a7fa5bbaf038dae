// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// direction is one of a connection: who sends to whom.
type direction struct{ from, to netip.AddrPort }

func (d direction) back() direction { return direction{d.to, d.from} }

// segments are what one direction put on the wire.
type segments struct {
	syn, fin, rst int
	payload       int // segments with payload
	bytes         int // in them
	all           int
}

// capture is a tcpdump of the TCP segments to and from one port on lo.
type capture struct {
	t       *testing.T
	p       *process
	port    int
	packets chan packet
	seen    map[direction]*segments
}

type packet struct {
	direction
	flags   byte
	payload int
	udp     bool
}

// captureLo starts tcpdump and returns when it demonstrably sees packets.
func captureLo(t *testing.T, port int) *capture {
	t.Helper()
	c := &capture{t: t, port: port, packets: make(chan packet, 1<<16), seen: map[direction]*segments{}}
	c.p = command(t, "tcpdump", "-i", "lo", "-n", "-U", "--immediate-mode", "-s", "128", "-B", "65536", "-Z", "root",
		"-w", "-", fmt.Sprintf("ip and port %d", port))
	c.p.Stdout = nil
	out, err := c.p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.p.start(t)
	go func() {
		defer close(c.packets)
		if err := readPcap(out, c.packets); err != nil {
			t.Errorf("read the capture: %v", err)
		}
	}()
	c.untilMark()
	return c
}

// untilMark takes in all packets up to one that it sends now, over UDP.
func (c *capture) untilMark() {
	c.t.Helper()
	// A mark of its own kind each time: of a size nobody sent before.
	mark, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	defer mark.Close()
	own := mark.LocalAddr().(*net.UDPAddr).AddrPort()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	mark.Write([]byte{0}) //nolint:errcheck // ECONNREFUSED, from the one before
	for timeout := time.After(patience); ; {
		select {
		case p, ok := <-c.packets:
			if !ok {
				c.t.Fatalf("tcpdump ended: %s", &c.p.err)
			}
			if p.udp && p.from == own {
				return
			}
			if !p.udp {
				c.add(p)
			}
		case <-tick.C: // it may not have listened yet
			mark.Write([]byte{0}) //nolint:errcheck // as above
		case <-timeout:
			c.t.Fatal("tcpdump does not see the mark")
		}
	}
}

func (c *capture) add(p packet) {
	s := c.seen[p.direction]
	if s == nil {
		s = &segments{}
		c.seen[p.direction] = s
	}
	s.all++
	for bit, n := range map[byte]*int{0x02: &s.syn, 0x01: &s.fin, 0x04: &s.rst} {
		if p.flags&bit != 0 {
			*n++
		}
	}
	if p.payload > 0 {
		s.payload++
		s.bytes += p.payload
	}
}

// stop ends the capture; it must have seen everything.
func (c *capture) stop() {
	c.t.Helper()
	c.untilMark()
	if err := c.p.Process.Signal(unix.SIGINT); err != nil {
		c.t.Fatal(err)
	}
	for range c.packets { // its output has to be read to the end before it is waited for
	}
	if status := c.p.wait(c.t); status != 0 || !strings.Contains(c.p.err.String(), "\n0 packets dropped by kernel") {
		c.t.Fatalf("tcpdump: %s: %s", describe(status), &c.p.err)
	}
}

// sum adds up all directions to (server = false) or from the captured port.
func (c *capture) sum(fromServer bool) (total segments, most int) {
	for d, s := range c.seen {
		if (int(d.from.Port()) == c.port) != fromServer {
			continue
		}
		total.syn += s.syn
		total.fin += s.fin
		total.rst += s.rst
		total.payload += s.payload
		total.bytes += s.bytes
		total.all += s.all
		most = max(most, s.payload)
	}
	return total, most
}

// readPcap reads a classic pcap of Ethernet frames, as lo has them.
func readPcap(r io.Reader, to chan<- packet) error {
	in := bufio.NewReaderSize(r, 1<<20)
	var head struct {
		Magic        uint32
		Major, Minor uint16
		_, _, _      uint32
		Link         uint32
	}
	if err := binary.Read(in, binary.NativeEndian, &head); err != nil {
		return err
	}
	if head.Magic != 0xa1b2c3d4 || head.Link != 1 {
		return fmt.Errorf("magic %x, link type %d", head.Magic, head.Link)
	}
	var record [16]byte
	for {
		if _, err := io.ReadFull(in, record[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		frame := make([]byte, binary.NativeEndian.Uint32(record[8:]))
		if _, err := io.ReadFull(in, frame); err != nil {
			return err
		}
		if p, ok := parse(frame); ok {
			to <- p
		}
	}
}

const ethernet = 14 // bytes of the header

// parse reads an IPv4 frame, of which all headers were captured.
func parse(frame []byte) (p packet, ok bool) {
	if len(frame) < ethernet+20+8 {
		return p, false
	}
	ip := frame[ethernet:]
	ihl, length := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	l4 := ip[ihl:]
	port := func(addr []byte, at int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr)), binary.BigEndian.Uint16(l4[at:]))
	}
	p.direction = direction{port(ip[12:16], 0), port(ip[16:20], 2)}
	switch ip[9] {
	case unix.IPPROTO_UDP:
		p.udp = true
		return p, true
	case unix.IPPROTO_TCP:
		p.flags = l4[13]
		p.payload = length - ihl - int(l4[12]>>4)*4
		return p, true
	}
	return p, false
}

// checkEnds wants a handshake and an end of each connection on the wire.
func (c *capture) checkEnds(connections int, resets bool) (client, server segments) {
	c.t.Helper()
	client, mostClient := c.sum(false)
	server, mostServer := c.sum(true)
	if len(c.seen) != 2*connections || client.syn != connections || server.syn != connections {
		c.t.Errorf("%d directions, %d SYN, %d SYN-ACK, want %d connections", len(c.seen), client.syn, server.syn, connections)
	}
	for _, d := range slices.Collect(maps.Keys(c.seen)) {
		s, back := c.seen[d], c.seen[d.back()]
		if back == nil || s.fin+s.rst+back.rst == 0 || (!resets && (s.fin != 1 || s.rst != 0)) {
			c.t.Errorf("%v has no end: %+v, back %+v", d, s, back)
		}
	}
	c.t.Logf("on the wire, %d connections: client %+v, server %+v; most payload segments of one: client %d, server %d",
		connections, client, server, mostClient, mostServer)
	return client, server
}

// Both ends were seen in recv before the first byte: no payload at all.
func TestWireCarriesNoPayload(t *testing.T) {
	require(t, "tcpdump")
	const connections, messages = 4, 10_000
	port := freePort(t)
	c := captureLo(t, port)
	_, s := accelerated(t, helperCommand("echo", "-prove", "-port", strconv.Itoa(port),
		"-connections", strconv.Itoa(connections), "-messages", strconv.Itoa(messages))...)
	c.stop()
	client, server := c.checkEnds(connections, false)
	if client.payload+server.payload != 0 {
		t.Errorf("%d segments with payload by clients, %d by servers, want none", client.payload, server.payload)
	}
	if got := s.Accel.Redirected.Messages; got != 2*connections*messages {
		t.Errorf("%d messages went socket to socket, want %d", got, 2*connections*messages)
	}
}

// The first message of a connection may find a reader that nobody saw read
// yet; once a direction has left the stack, it does not come back to it.
func TestWireCarriesOnlyFirstMessages(t *testing.T) {
	require(t, "tcpdump")
	const connections, messages = 20, 1000
	port := freePort(t)
	c := captureLo(t, port)
	_, s := accelerated(t, helperCommand("echo", "-port", strconv.Itoa(port),
		"-connections", strconv.Itoa(connections), "-messages", strconv.Itoa(messages))...)
	c.stop()
	client, server := c.checkEnds(connections, false)
	checkPayload(t, client, server, s)
	for d, s := range c.seen {
		if s.payload > 1 {
			t.Errorf("%v: %d segments with payload, want only its first message", d, s.payload)
		}
	}
}

// checkPayload wants on the wire exactly what shunt says it left to the stack.
func checkPayload(t *testing.T, client, server segments, s summary) {
	t.Helper()
	stack := s.Accel.StackTotal()
	if got := uint64(client.payload + server.payload); got > stack.Messages {
		t.Errorf("%d segments with payload, shunt says that %d messages took the stack", got, stack.Messages)
	}
	if got := uint64(client.bytes + server.bytes); got != stack.Bytes {
		t.Errorf("%d bytes on the wire, shunt says %d", got, stack.Bytes)
	}
	t.Logf("shunt: %d messages socket to socket, %v by the stack", s.Accel.Redirected.Messages, s.Accel.Stack)
}

func TestWireDuringRedisBenchmark(t *testing.T) {
	require(t, "tcpdump", "redis-server", "redis-benchmark")
	port := freePort(t)
	c := captureLo(t, port)
	const connections, requests = 50, 100_000
	// It keeps its connections for all of its requests; a script is all of one kind.
	script := fmt.Sprintf(`mkfifo log; redis-server --bind 127.0.0.1 --port %[1]d --save "" --appendonly no >log & server=$!
		exec 3<log; while read -r line <&3; do case $line in *"Ready to accept"*) break; esac; done; cat <&3 >/dev/null &
		redis-benchmark -h 127.0.0.1 -p %[1]d -c %[2]d -n %[3]d -t get -q >&2; status=$?
		kill $server; wait $server && exit $status`, port, connections, requests)
	file := t.TempDir() + "/summary.json"
	p := command(t, shunt, "run", "--json", file, "--", "sh", "-c", script)
	p.Dir = t.TempDir()
	p.succeed(t)
	c.stop()
	s := readSummary(t, file)
	client, server := c.checkEnds(connections+blockingRedis, true)
	if got := s.Accel.Redirected.Messages; got+2*2*connections < 2*requests {
		t.Errorf("%d messages went socket to socket, of %d", got, 2*requests)
	}
	// A connection's first request and its answer. The blocking one is plain TCP.
	stack := s.Accel.StackTotal()
	if limit := 2*connections + 8*blockingRedis; client.payload+server.payload > limit {
		t.Errorf("%d segments with payload on the wire, want at most %d", client.payload+server.payload, limit)
	}
	over := 0
	for _, s := range c.seen {
		if s.payload > 1 {
			over++
		}
	}
	if over > 2*blockingRedis {
		t.Errorf("%d directions sent payload after their first message", over)
	}
	t.Logf("shunt: %d messages socket to socket, %d by the stack (%v)", s.Accel.Redirected.Messages, stack.Messages, s.Accel.Stack)
}
