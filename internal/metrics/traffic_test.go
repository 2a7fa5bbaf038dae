// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

// session is a session with this process in it until the test ends.
func session(t *testing.T, opts node.SessionOptions) *node.Session {
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
	s, err := node.NewSession(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	enter := func(cgroup string) {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0); err != nil {
			t.Error(err)
		}
	}
	enter(s.Dir())
	t.Cleanup(func() { enter(own) })
	return s
}

// collector is over this session alone: others may run on the machine.
func collector(s *node.Session) (c *Collector, series func(metric, label string) string) {
	c = New(func() ([]node.Instance, error) {
		i, err := s.Instance()
		return []node.Instance{i}, err
	}, "v1")
	return c, func(metric, label string) string {
		if label != "" {
			label += ","
		}
		return fmt.Sprintf("%s{%sshunt_instance=%q}", metric, label, filepath.Base(s.Dir()))
	}
}

type pair struct{ c, s *net.TCPConn }

func connect(t *testing.T, l net.Listener) pair {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return pair{c.(*net.TCPConn), s.(*net.TCPConn)}
}

// exchange sends n messages of size bytes each way, one after the other.
func (p pair) exchange(t *testing.T, n, size int) {
	t.Helper()
	b := make([]byte, size)
	for range n {
		for _, d := range [][2]net.Conn{{p.c, p.s}, {p.s, p.c}} {
			if _, err := d[0].Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(d[1], b); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// sum adds up all reasons of a metric.
func sumOf(series map[string]float64, metric string) (sum float64) {
	for name, v := range series {
		if strings.HasPrefix(name, metric+"{") {
			sum += v
		}
	}
	return sum
}

// What Prometheus gets is what happened.
func TestRealTraffic(t *testing.T) {
	s := session(t, node.SessionOptions{MaxQueue: 64 << 10})
	c, name := collector(s)
	l := listen(t)
	expect := func(series map[string]float64, metric, label string, want float64) {
		t.Helper()
		got, there := series[name(metric, label)]
		if !there || got != want {
			t.Errorf("%s: %v, want %v", name(metric, label), got, want)
		}
	}

	idle := scrape(t, c)
	expect(idle, "shunt_accel_connections_total", "", 0)
	expect(idle, "shunt_accel_queue_bound_bytes", "", 64<<10)
	expect(idle, "shunt_accel_owned", "", 1)

	// Messages: all counted, most of them short.
	p := connect(t, l)
	const n, size = 200, 100
	p.exchange(t, n, size)
	talk := scrape(t, c)
	expect(talk, "shunt_accel_connections_total", "", 1)
	expect(talk, "shunt_accel_joined_total", "", 1)
	expect(talk, "shunt_accel_sockets", "", 2)
	messages := sumOf(talk, "shunt_accel_redirected_messages_total")
	if messages < n {
		t.Errorf("%v of %d messages redirected", messages, 2*n)
	}
	if all := messages + sumOf(talk, "shunt_accel_stack_messages_total"); all != 2*n {
		t.Errorf("%v messages, sent were %d", all, 2*n)
	}
	if bytes := sumOf(talk, "shunt_accel_redirected_bytes_total"); bytes != messages*size {
		t.Errorf("%v bytes in %v messages of %d", bytes, messages, size)
	}
	if all := sumOf(talk, "shunt_accel_redirected_bytes_total") + sumOf(talk, "shunt_accel_stack_bytes_total"); all != 2*n*size {
		t.Errorf("%v bytes, sent were %d", all, 2*n*size)
	}

	// A reader that does not read: what does not fit spills.
	if err := p.c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for b := make([]byte, 16<<10); sent < 64*len(b); {
		k, err := p.c.Write(b)
		sent += k
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	spilled := scrape(t, c)
	if b := spilled[name("shunt_accel_spilled_bytes_total", "")]; b == 0 || b != spilled[name("shunt_accel_stack_bytes_total", `reason="spill"`)] {
		t.Errorf("%v bytes spilled of %d", b, sent)
	}
	if b := spilled[name("shunt_accel_redirected_bytes_total", "")] - talk[name("shunt_accel_redirected_bytes_total", "")]; b > 64<<10+16<<10 {
		t.Errorf("%v bytes were queued, more than the bound and a message", b)
	}
	if _, err := io.CopyN(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{p.s}, int64(sent)); err != nil { // hidden: it would splice
		t.Fatal(err)
	}

	// A half-close takes the pair out of the map.
	if err := p.c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	left := scrape(t, c)
	expect(left, "shunt_accel_left_total", `reason="shutdown"`, 1)
	p.c.Close()
	p.s.Close()

	// A close with unread redirected bytes resets.
	p = connect(t, l)
	p.exchange(t, 3, size) // both are proven readers
	if _, err := p.c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	p.s.Close()
	p.c.Close()
	expect(scrape(t, c), "shunt_accel_resets_total", "", 1)

	// Blocking sockets stay on plain TCP, by reason.
	q := blocking(t)
	if _, err := q.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	end := scrape(t, c)
	expect(end, "shunt_accel_connections_total", "", 3)
	expect(end, "shunt_accel_joined_total", "", 2)
	expect(end, "shunt_accel_not_joined_total", `reason="blocking"`, 1)
	if n := sumOf(end, "shunt_accel_faults_total"); n != 0 {
		t.Errorf("%v faults", n)
	}
	for metric, was := range idle {
		for _, later := range []map[string]float64{talk, spilled, left, end} {
			if now, there := later[metric]; !there || strings.Contains(metric, "_total") && now < was {
				t.Errorf("%s went from %v to %v (there: %v)", metric, was, now, there)
			}
			was = later[metric]
		}
	}
}

// Counters do not go back while connections come and go, nor at the end.
func TestCountersUnderCloses(t *testing.T) {
	const connections, scrapers = 1500, 2
	s := session(t, node.SessionOptions{})
	c, name := collector(s)
	l := listen(t)
	stop := make(chan struct{})
	ended := make(chan int, scrapers)
	for range scrapers {
		go func() {
			last := map[string]float64{}
			n := 0
			defer func() { ended <- n }()
			for running := true; running; n++ {
				select {
				case <-stop:
					running = false
				default:
				}
				now := scrape(t, c)
				for series, was := range last {
					if v, there := now[series]; strings.Contains(series, "_total") && (!there || v < was) {
						t.Errorf("scrape %d: %s went from %v to %v", n, series, was, v)
						running = false
					}
				}
				last = now
			}
		}()
	}
	const n, size = 20, 10
	for range connections {
		p := connect(t, l)
		p.exchange(t, n, size)
		p.c.Close()
		p.s.Close()
	}
	close(stop)
	for range scrapers {
		t.Logf("%d scrapes", <-ended)
	}
	end := scrape(t, c)
	if got := end[name("shunt_accel_joined_total", "")]; got != connections {
		t.Errorf("%v joined of %d", got, connections)
	}
	if all := sumOf(end, "shunt_accel_redirected_messages_total") + sumOf(end, "shunt_accel_stack_messages_total"); all != 2*n*connections {
		t.Errorf("%v messages, sent were %d", all, 2*n*connections)
	}
}
