// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/node"
)

// tapTalk keeps one connection between its own two ends. It says where it runs
// and its ports, and for each line of sizes on stdin sends as many messages and
// has each answered with its bytes inverted.
func tapTalk(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	go serveInverted(s)
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(cgroup)) {
		if path, ok := strings.CutPrefix(l, "0::"); ok {
			fmt.Print(path)
		}
	}
	fmt.Println(c.LocalAddr().(*net.TCPAddr).Port, l.Addr().(*net.TCPAddr).Port)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		for _, word := range strings.Fields(in.Text()) {
			size, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			out, back := tapMessage(size), make([]byte, size)
			head := fmt.Sprintf("%08d", size)
			if _, err := io.WriteString(c, head); err != nil {
				return err
			}
			if _, err := c.Write(out); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, back); err != nil {
				return err
			}
			if !bytes.Equal(back, inverted(out)) {
				return fmt.Errorf("the answer to %d bytes came back changed", size)
			}
		}
		fmt.Println("done")
	}
	return errors.Join(c.Close(), in.Err())
}

func serveInverted(s net.Conn) {
	head := make([]byte, 8)
	for {
		if _, err := io.ReadFull(s, head); err != nil {
			return
		}
		size, err := strconv.Atoi(string(head))
		if err != nil {
			return
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(s, b); err != nil {
			return
		}
		if _, err := s.Write(inverted(b)); err != nil {
			return
		}
	}
}

// tapMessage is the message of that size.
func tapMessage(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(b) //nolint:errcheck // never fails
	return b
}

func inverted(b []byte) []byte {
	c := bytes.Clone(b)
	for i := range c {
		c[i] ^= 0xff
	}
	return c
}

// conversation is what goes each way for these sizes.
func conversation(sizes ...int) (asked, answered []byte) {
	for _, n := range sizes {
		asked = fmt.Appendf(asked, "%08d", n)
		asked = append(asked, tapMessage(n)...)
		answered = append(answered, inverted(tapMessage(n))...)
	}
	return asked, answered
}

// tapped is a session with helper tap-talk in it.
type tapped struct {
	t              *testing.T
	run            *process
	d              *dialogue
	s              session
	client, server int // ports
	pid            int // of the helper
}

func startTapped(t *testing.T, address string, flags ...string) *tapped {
	t.Helper()
	run := command(t, append(append(append([]string{shunt, "run", "-q"}, flags...), "--"), helperCommand("tap-talk", address)...)...)
	w := &tapped{t: t, run: run, d: run.dialogue(t)}
	w.s = sessionOf(t, w.d.next())
	if _, err := fmt.Sscan(w.d.next(), &w.client, &w.server); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(w.s.cgroup, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &w.pid); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *tapped) exchange(sizes ...int) {
	w.t.Helper()
	text := make([]string, len(sizes))
	for i, n := range sizes {
		text[i] = strconv.Itoa(n)
	}
	w.d.say(strings.Join(text, " "))
	w.d.expect("done")
}

// end ends the helper, and with it the session.
func (w *tapped) end() {
	w.t.Helper()
	w.d.end()
	if status := w.run.wait(w.t); status != 0 {
		w.t.Fatalf("shunt run: %s\n%s", describe(status), &w.run.err)
	}
}

// tap is a running `shunt tap`.
type tap struct {
	*process
	file string
	note chan string // lines of stderr
	said []string
}

func (w *tapped) tap(args ...string) *tap {
	w.t.Helper()
	c := &tap{file: filepath.Join(w.t.TempDir(), "tap.pcapng"), note: make(chan string, 100)}
	c.process = command(w.t, append([]string{shunt, "tap", "-w", c.file, "--instance", w.s.name}, args...)...)
	c.Stderr = nil
	errs, err := c.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	c.start(w.t)
	go readLines(errs, c.note)
	c.until(w.t, "tapping 1 instances")
	return c
}

func (c *tap) until(t *testing.T, words string) {
	t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case l, ok := <-c.note:
			if !ok {
				t.Fatalf("tap ended before it said %q: %q", words, c.said)
			}
			c.said = append(c.said, l)
			if strings.Contains(l, words) {
				return
			}
		case <-timeout:
			t.Fatalf("tap did not say %q: %q", words, c.said)
		}
	}
}

// stop interrupts it and returns its summary.
func (c *tap) stop(t *testing.T) string {
	t.Helper()
	if err := c.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	return c.summary(t)
}

func (c *tap) summary(t *testing.T) string {
	t.Helper()
	c.said = nil
	for l := range c.note {
		c.said = append(c.said, l)
	}
	if status := c.wait(t); status != 0 {
		t.Fatalf("tap: %s: %q", describe(status), c.said)
	}
	return strings.Join(c.said, "\n")
}

func tshark(t *testing.T, file string, args ...string) string {
	t.Helper()
	return command(t, append([]string{"tshark", "-n", "-r", file, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"}, args...)...).succeed(t)
}

// follow is what tshark makes of each direction of the first stream.
func follow(t *testing.T, file string) (fromClient, fromServer []byte) {
	t.Helper()
	for _, l := range lines(tshark(t, file, "-q", "-z", "follow,tcp,raw,0")) {
		text := strings.TrimSpace(l)
		b, err := hex.DecodeString(text)
		if err != nil || text == "" {
			continue // the frame around it
		}
		if strings.HasPrefix(l, "\t") {
			fromServer = append(fromServer, b...)
		} else {
			fromClient = append(fromClient, b...)
		}
	}
	return fromClient, fromServer
}

// checkCapture wants exactly this conversation, and nothing to complain about.
func checkCapture(t *testing.T, file string, asked, answered []byte) {
	t.Helper()
	gotAsked, gotAnswered := follow(t, file)
	if !bytes.Equal(gotAsked, asked) {
		t.Errorf("tshark sees %d bytes from the client that are not the %d sent", len(gotAsked), len(asked))
	}
	if !bytes.Equal(gotAnswered, answered) {
		t.Errorf("tshark sees %d bytes from the server that are not the %d sent", len(gotAnswered), len(answered))
	}
	// One call, and the reason in its output: tshark takes its time to start.
	const bad = "tcp.checksum.status != 1 || (ip && ip.checksum.status != 1) || _ws.malformed || " +
		"tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment || tcp.analysis.out_of_order || " +
		"tcp.analysis.retransmission || tcp.analysis.spurious_retransmission || " +
		"(tcp.len > 0 && !(tcp.flags == 0x18)) || !frame.comment"
	if out := tshark(t, file, "-Y", bad); out != "" {
		t.Errorf("packets that are %s:\n%.2000s", bad, out)
	}
}

var tapSizes = []int{1, 64, 512, 513, 4096, 4097, 32768, 32769, 65536, 100_000, 1 << 20, 7}

func TestTapFollow(t *testing.T) {
	require(t, "tshark")
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			w := startTapped(t, address)
			c := w.tap(fmt.Sprintf("port %d", w.server))
			w.exchange(tapSizes...)
			summary := c.stop(t)
			cgroup := cgroupOf(t, w.s)
			w.end()
			asked, answered := conversation(tapSizes...)
			checkCapture(t, c.file, asked, answered)
			if !strings.Contains(summary, "of 1 connections; 0 dropped") {
				t.Errorf("summary: %s", summary)
			}
			comment := regexp.MustCompile(fmt.Sprintf(`^[^ ]+\[%d\]( to [^ ]+\[%d\])?, cgroup %s, (socket to socket|through the stack: [a-z-]+), message of \d+ bytes$`,
				w.pid, w.pid, regexp.QuoteMeta(cgroup)))
			short, syns := 0, []string{}
			for _, l := range lines(tshark(t, c.file, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.interface_name",
				"-e", "tcp.srcport", "-e", "tcp.dstport", "-e", "tcp.flags", "-e", "tcp.len", "-e", "frame.comment")) {
				f := strings.Split(l, "\t")
				if len(f) != 7 {
					t.Fatalf("fields: %q", l)
				}
				at, err := strconv.ParseFloat(f[0], 64)
				if err != nil || time.Since(time.Unix(int64(at), 0)).Abs() > 4*patience {
					t.Errorf("a packet is from %s", f[0])
				}
				if f[1] != w.s.name {
					t.Errorf("a packet of interface %s, want %s", f[1], w.s.name)
				}
				if f[5] == "0" {
					syns = append(syns, strings.Join(f[2:5], " "))
					continue
				}
				if !comment.MatchString(f[6]) {
					t.Errorf("comment %q", f[6])
				}
				if strings.Contains(f[6], "socket to socket") {
					short++
				}
			}
			want := []string{
				fmt.Sprintf("%d %d 0x0002", w.client, w.server),
				fmt.Sprintf("%d %d 0x0012", w.server, w.client),
				fmt.Sprintf("%d %d 0x0010", w.client, w.server),
			}
			if !slices.Equal(syns, want) {
				t.Errorf("handshake %q, want %q", syns, want)
			}
			if short == 0 {
				t.Error("no message of the capture went socket to socket")
			}
		})
	}
}

// cgroupOf is the session's path from the root of the hierarchy.
func cgroupOf(t *testing.T, s session) string {
	t.Helper()
	for dir := filepath.Dir(s.cgroup); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cgroup.procs")); err != nil {
			return strings.TrimPrefix(s.cgroup, dir)
		}
	}
}

// What was sent before the tap is not in it, and leaves no hole.
func TestTapStartsLate(t *testing.T) {
	require(t, "tshark")
	w := startTapped(t, "127.0.0.1:0")
	w.exchange(100, 70_000)
	c := w.tap()
	w.exchange(200, 50_000)
	c.stop(t)
	w.end()
	asked, answered := conversation(200, 50_000)
	checkCapture(t, c.file, asked, answered)
}

// Where the stack's buffer is full, a message comes again with the rest of what
// it could not take, and the kernel sends some without asking the program. In the
// capture these are retransmissions and gaps: each byte is where it belongs.
func TestTapSpill(t *testing.T) {
	require(t, "tshark")
	sizes := slices.Repeat([]int{1 << 20}, 3)
	w := startTapped(t, "127.0.0.1:0", "--max-queue", "64")
	c := w.tap()
	w.exchange(sizes...)
	if s := c.stop(t); !strings.Contains(s, "; 0 dropped") {
		t.Errorf("summary: %s", s)
	}
	w.end()
	asked, answered := conversation(sizes...)
	spilled, last := 0, map[int]int{}
	for _, l := range lines(tshark(t, c.file, "-Y", "tcp.len > 0", "-T", "fields",
		"-e", "tcp.srcport", "-e", "tcp.seq", "-e", "tcp.payload", "-e", "frame.comment")) {
		f := strings.Split(l, "\t")
		if len(f) != 4 {
			t.Fatalf("fields: %.200q", l)
		}
		payload, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		port, at := number(t, f[0]), number(t, f[1])-1
		stream := asked
		if port == w.server {
			stream = answered
		}
		end := at + len(payload)
		if at < 0 || end > len(stream) || !bytes.Equal(payload, stream[at:end]) {
			t.Errorf("%d bytes at %d of the stream of %d are not what was sent there", len(payload), at, len(stream))
		}
		last[port] = max(last[port], end)
		if strings.Contains(f[3], "spill") {
			spilled++
		}
	}
	t.Logf("of %d and %d bytes, the last captured is %d and %d", len(asked), len(answered), last[w.client], last[w.server])
	if spilled == 0 {
		t.Error("nothing spilled: this test shows nothing")
	}
}

func TestTapSnaplen(t *testing.T) {
	require(t, "tshark")
	const snaplen = 100
	sizes := []int{50, 99, 100, 101, 5000, 200_000}
	w := startTapped(t, "127.0.0.1:0")
	c := w.tap("--snaplen", strconv.Itoa(snaplen))
	w.exchange(sizes...)
	if s := c.stop(t); !strings.Contains(s, "cut to --snaplen") || !strings.Contains(s, "0 dropped") {
		t.Errorf("summary: %s", s)
	}
	w.end()
	asked, answered := conversation(sizes...)
	var sum, kept int
	for _, l := range lines(tshark(t, c.file, "-Y", "tcp.len > 0", "-T", "fields", "-e", "tcp.len", "-e", "frame.len", "-e", "frame.cap_len")) {
		var payload, length, captured int
		if _, err := fmt.Sscan(l, &payload, &length, &captured); err != nil {
			t.Fatal(err)
		}
		if length != payload+40 || captured != min(payload, snaplen)+40 {
			t.Errorf("a packet of %d bytes of payload: length %d, captured %d", payload, length, captured)
		}
		sum += payload
		kept += captured - 40
	}
	if sum != len(asked)+len(answered) {
		t.Errorf("packets of %d bytes, want %d", sum, len(asked)+len(answered))
	}
	if out := tshark(t, c.file, "-Y", "tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment"); out != "" {
		t.Errorf("lost segments: %s", out)
	}
	t.Logf("%d of %d bytes kept", kept, sum)
}

func TestTapFilter(t *testing.T) {
	require(t)
	w := startTapped(t, "127.0.0.1:0")
	cgroup := cgroupOf(t, w.s)
	for filter, want := range map[string]bool{
		fmt.Sprintf("port %d", w.server):                         true,
		fmt.Sprintf("port %d and port %d", w.client, w.server):   true,
		fmt.Sprintf("port %d and port %d", w.client, w.client^1): false,
		fmt.Sprintf("port %d", w.server^1):                       false,
		"host 127.0.0.1":                                         true,
		"host 127.0.0.2":                                         false,
		"host ::1":                                               false,
		fmt.Sprintf("pid %d", w.pid):                             true,
		fmt.Sprintf("pid %d", os.Getpid()):                       false,
		"cgroup " + cgroup:                                       true,
		"cgroup " + cgroup + "x":                                 false,
		fmt.Sprintf("pid %d and cgroup %s and port %d", w.pid, cgroup, w.client): true,
	} {
		c := w.tap(filter)
		w.exchange(300)
		says := "shunt: 0 packets"
		if want {
			says = "shunt: 3 packets" // what Go writes in two calls, and the answer
		}
		if s := c.stop(t); !strings.HasPrefix(s, says) {
			t.Errorf("%q: %s, want %s", filter, s, says)
		}
	}
	p := command(t, shunt, "tap", "-w", os.DevNull, "port 1 or port 2")
	if p.run(t).ExitStatus() != 1 {
		t.Error("a wrong filter was taken")
	}
	checkComplaint(t, p, "\"or\"", "only \"and\" joins conditions")
	w.end()
}

func TestTapEnds(t *testing.T) {
	require(t, "tshark")
	w := startTapped(t, "127.0.0.1:0")
	c := w.tap("--count", "3")
	w.exchange(10, 10, 10)
	c.summary(t)
	if got := lines(tshark(t, c.file, "-Y", "tcp.len > 0")); len(got) != 3 {
		t.Errorf("--count 3 wrote %d packets", len(got))
	}
	w.tap("--for", "100ms").summary(t)

	c = w.tap()
	second := command(t, shunt, "tap", "-w", os.DevNull, "--instance", w.s.name)
	if second.run(t).ExitStatus() != 1 || !strings.Contains(second.err.String(), fmt.Sprintf("is read already, by process %d", c.Process.Pid)) {
		t.Errorf("a second tap: %s", &second.err)
	}
	c.stop(t)
	if until := w.control(); until != 0 {
		t.Error("a tap that ended left its flag on")
	}
	if w.buffer() != nil {
		t.Error("a tap that ended left its buffer")
	}
	w.end()
}

// control is the deadline of the kernel half's flag for messages.
func (w *tapped) control() uint64 {
	w.t.Helper()
	m := w.pinned("shunt_tap")
	defer m.Close()
	b, err := m.LookupBytes(uint32(0))
	if err != nil || len(b) < 8 {
		w.t.Fatalf("read the flag: %v", err)
	}
	var until uint64
	for i := range 8 {
		until |= uint64(b[i]) << (8 * i)
	}
	return until
}

func (w *tapped) pinned(name string) *ebpf.Map {
	w.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, w.s.name, name), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// buffer is the ring buffer that the kernel half writes to; nil if none.
func (w *tapped) buffer() *ringbuf.Reader {
	w.t.Helper()
	m := w.pinned("shunt_taps")
	defer m.Close()
	var ring *ebpf.Map
	if err := m.Lookup(uint32(0), &ring); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ring.Close() })
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { r.Close() })
	return r
}

// A tap that is killed leaves the flag on for some seconds, then it is off by
// itself: nothing is written any more. The traffic does not notice.
func TestTapKilled(t *testing.T) {
	require(t)
	w := startTapped(t, "127.0.0.1:0")
	if w.control() != 0 {
		t.Fatal("on before anyone asked")
	}
	c := w.tap()
	w.exchange(1000)
	unix.Kill(-c.Process.Pid, unix.SIGSTOP) //nolint:errcheck // or it would read what this test looks for
	ring := w.buffer()
	before := ring.AvailableBytes()
	w.exchange(1000)
	if ring.AvailableBytes() <= before {
		t.Error("the kernel half wrote nothing while the tap was on: this test could not fail")
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
	eventually(t, "the tap is off", func() bool {
		w.exchange(1000)
		return w.control() == 0
	})
	before = ring.AvailableBytes()
	w.exchange(tapSizes...)
	if ring.AvailableBytes() != before {
		t.Error("the kernel half still writes")
	}
	// And the next one may have the place.
	c = w.tap()
	w.exchange(1000)
	if s := c.stop(t); !strings.Contains(s, "of 1 connections") {
		t.Error(s)
	}
	w.end()
}

// A full buffer costs the capture, never the traffic; what is missing is said.
func TestTapOverflow(t *testing.T) {
	require(t, "tshark")
	w := startTapped(t, "127.0.0.1:0")
	c := w.tap()
	unix.Kill(-c.Process.Pid, unix.SIGSTOP) //nolint:errcheck // a reader that cannot keep up
	sizes := slices.Repeat([]int{1 << 20}, 16)
	w.exchange(sizes...)
	unix.Kill(-c.Process.Pid, unix.SIGCONT) //nolint:errcheck // as above
	s := c.stop(t)
	var packets, dropped int
	if m := regexp.MustCompile(`shunt: (\d+) packets, .* (\d+) dropped`).FindStringSubmatch(s); m == nil {
		t.Fatalf("summary: %s", s)
	} else if packets, dropped = number(t, m[1]), number(t, m[2]); packets == 0 || dropped == 0 {
		t.Errorf("%d packets, %d dropped: want both", packets, dropped)
	}
	w.end()
	if out := tshark(t, c.file, "-Y", "tcp.checksum.status != 1"); out != "" {
		t.Errorf("wrong checksums:\n%s", out)
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// following starts `shunt accel -f`; stop interrupts it.
func following(t *testing.T, args ...string) (d *dialogue, stop func()) {
	t.Helper()
	p := command(t, append([]string{shunt, "accel", "-f"}, args...)...)
	p.Stdout = nil
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start(t)
	return newDialogue(t, nil, out), func() {
		t.Helper()
		if err := p.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if status := p.wait(t); status != 0 {
			t.Errorf("%v: %s: %s", p.Args, describe(status), &p.err)
		}
	}
}

// followed waits until the follower reads that session.
func followed(t *testing.T, s session) {
	t.Helper()
	eventually(t, "follow reads "+s.name, func() bool {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins, s.name, "shunt_tap"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		b, err := m.LookupBytes(uint32(1))
		return err == nil && !bytes.Equal(b[:8], make([]byte, 8))
	})
}

// An instance that is loaded later is followed too.
func TestAccelFollow(t *testing.T) {
	require(t)
	d, stop := following(t)
	if head := d.next(); !strings.HasPrefix(head, "TIME") {
		t.Fatalf("first line %q", head)
	}
	w := startTapped(t, "127.0.0.1:0")
	w.exchange(10)
	followed(t, w.s)
	w.end()
	want := regexp.MustCompile(fmt.Sprintf(`^[\d:.]+ +leave +127.0.0.1:%d +127.0.0.1:%d +.* close$`, w.client, w.server))
	for !want.MatchString(d.next()) {
	}
	stop()
	if p := command(t, shunt, "accel", "-f", "-o", "yaml"); p.run(t).ExitStatus() != 1 {
		t.Error("yaml was taken for --follow")
	}
}

// Joins and leaves in order, as JSON lines, with who and why.
func TestAccelFollowJSON(t *testing.T) {
	require(t)
	run := command(t, append([]string{shunt, "run", "-q", "--"}, helperCommand("tap-dial")...)...)
	d := run.dialogue(t)
	s := sessionOf(t, d.next())
	fd, stop := following(t, "-o", "jsonl")
	followed(t, s)
	d.say("dial")
	port := number(t, d.next())
	var got []node.PairEvent
	for len(got) < 2 {
		var e node.PairEvent
		if err := json.Unmarshal([]byte(fd.next()), &e); err != nil {
			t.Fatal(err)
		}
		if e.Instance == s.name {
			got = append(got, e)
		}
	}
	if got[0].Event != "join" || got[0].Reason != "" || got[1].Event != "leave" || got[1].Reason != "close" {
		t.Errorf("events: %+v", got)
	}
	for _, e := range got {
		if int(e.Local.Port()) != port || e.Cgroup != cgroupOf(t, s) || !strings.HasSuffix(e.Process, fmt.Sprintf("[%d]", helperPID(t, s))) {
			t.Errorf("event: %+v, want port %d in %s", e, port, cgroupOf(t, s))
		}
	}
	if !got[0].Time.Before(got[1].Time) || time.Since(got[0].Time).Abs() > 2*patience {
		t.Errorf("times: %v, %v", got[0].Time, got[1].Time)
	}
	stop()
	d.end()
	run.wait(t)
}

func helperPID(t *testing.T, s session) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.cgroup, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return number(t, lines(string(b))[0])
}

// tapDial says where it runs, and for each line on stdin makes a connection
// between its own ends, says its port when both ends talked, and closes it.
func tapDial() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(cgroup)) {
		if path, ok := strings.CutPrefix(l, "0::"); ok {
			fmt.Print(path)
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return err
		}
		go serveInverted(s)
		for range 300 { // until a follower had the time to look who it is
			if _, err := io.WriteString(c, "000000010"); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		if err := c.Close(); err != nil {
			return err
		}
		fmt.Println(c.LocalAddr().(*net.TCPAddr).Port)
	}
	return nil
}

// BenchmarkTap is what the program that decides about each message takes of the
// sender's time, by the kernel's own count, while nobody taps and while someone
// does: 64 bytes each way.
func BenchmarkTap(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root, to load BPF and make cgroups")
	}
	const messages = 20_000
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close() //nolint:errcheck // a handle
	run := exec.CommandContext(b.Context(), shunt, append([]string{"run", "-q", "--"}, helperCommand("tap-talk", "127.0.0.1:0")...)...)
	in, err := run.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := run.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := run.Start(); err != nil {
		b.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Scan()
	name := filepath.Base(said.Text())
	said.Scan()
	line := strings.Repeat("64 ", messages) + "\n"
	exchange := func() {
		for part := range slices.Chunk(strings.Fields(line), 1000) { // a scanner takes lines up to 64 KiB
			fmt.Fprintln(in, strings.Join(part, " "))
			said.Scan()
		}
	}
	program := redirectOf(b, name)
	defer program.Close() //nolint:errcheck // a handle
	measure := func() float64 {
		before, err := program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		exchange()
		after, err := program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		return float64(after.Runtime-before.Runtime) / float64(after.RunCount-before.RunCount)
	}
	var off, on []float64
	for b.Loop() {
		off = append(off, measure())
		tap := exec.CommandContext(b.Context(), shunt, "tap", "-w", os.DevNull, "--instance", name)
		note, err := tap.StderrPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := tap.Start(); err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewReader(note)
		if _, err := lines.ReadString('\n'); err != nil { // "tapping"
			b.Fatal(err)
		}
		on = append(on, measure())
		if err := tap.Process.Signal(unix.SIGINT); err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, lines) //nolint:errcheck // the summary
		if err := tap.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	in.Close() //nolint:errcheck // ends it
	if err := run.Wait(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(off)
	slices.Sort(on)
	b.ReportMetric(off[len(off)/2], "ns/message-off")
	b.ReportMetric(on[len(on)/2], "ns/message-on")
	b.ReportMetric(0, "ns/op")
}

// redirectOf finds the message program of an instance: it is the one of that
// name which uses the instance's map.
func redirectOf(b *testing.B, instance string) *ebpf.Program {
	b.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, instance, "shunt_conns"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close() //nolint:errcheck // a handle
	info, err := m.Info()
	if err != nil {
		b.Fatal(err)
	}
	want, _ := info.ID()
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			b.Fatalf("find the message program: %v", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // just gone
		}
		if info, err := p.Info(); err == nil && info.Name == "redirect" {
			if used, _ := info.MapIDs(); slices.Contains(used, want) {
				return p
			}
		}
		p.Close() //nolint:errcheck // a handle
	}
}
