// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	redisPairs     = 10_000 // SET and GET of our own client, values compared
	redisClients   = 4
	redisBenchmark = 50_000 // requests of each kind by redis-benchmark
)

// redisReport is what the helper found out, and what the server says of itself.
type redisReport struct {
	Connections uint64 // accepted by the server
	Bytes       uint64 // read and written by the server
}

// redis runs a redis server, checks every value with a client of its own, and
// runs redis-benchmark.
func redis(args []string) error {
	port := args[0]
	address := net.JoinHostPort("127.0.0.1", port)
	stop, err := server("Ready to accept connections",
		"redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
	if err != nil {
		return err
	}
	report, err := useRedis(address, port)
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

func useRedis(address, port string) (redisReport, error) {
	var clients []*resp
	for range redisClients {
		c, err := dialRedis(address)
		if err != nil {
			return redisReport{}, err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < redisPairs; {
		c := clients[r.IntN(len(clients))]
		n := min(1+r.IntN(16), redisPairs-i) // pipelined
		if err := c.setAndGet(r, n); err != nil {
			return redisReport{}, fmt.Errorf("pair %d: %w", i, err)
		}
		i += n
	}
	// It exits at the first error reply; the server says below what it answered.
	out, err := exec.Command("redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", "50",
		"-n", strconv.Itoa(redisBenchmark), "-t", "set,get", "--csv").CombinedOutput()
	if err != nil {
		return redisReport{}, fmt.Errorf("redis-benchmark: %w: %s", err, out)
	}

	stats, size, err := clients[0].info()
	if err != nil {
		return redisReport{}, err
	}
	for command, want := range map[string]int{"set": redisPairs + redisBenchmark, "get": redisPairs + redisBenchmark} {
		if got := stats["cmdstat_"+command]; !strings.HasPrefix(got, fmt.Sprintf("calls=%d,", want)) || !strings.HasSuffix(got, "failed_calls=0") {
			return redisReport{}, fmt.Errorf("the server did %s: %s, want %d calls", command, got, want)
		}
	}
	var report redisReport
	for key, n := range map[string]*uint64{"total_connections_received": &report.Connections, "total_net_input_bytes": &report.Bytes} {
		if *n, err = strconv.ParseUint(stats[key], 10, 64); err != nil {
			return redisReport{}, err
		}
	}
	written, err := strconv.ParseUint(stats["total_net_output_bytes"], 10, 64)
	report.Bytes += written + uint64(size) // this answer is not in it
	return report, err
}

// resp is a redis client.
type resp struct {
	net.Conn
	in  *bufio.Reader
	out *bufio.Writer
}

func dialRedis(address string) (*resp, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &resp{c, bufio.NewReader(c), bufio.NewWriter(c)}, c.SetDeadline(time.Now().Add(patience))
}

func (c *resp) command(args ...string) {
	fmt.Fprintf(c.out, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(c.out, "$%d\r\n%s\r\n", len(a), a)
	}
}

// bulk reads a bulk reply.
func (c *resp) bulk() (value string, wire int, err error) {
	head, err := c.in.ReadString('\n')
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(strings.Trim(head, "$\r\n"))
	if err != nil || head[0] != '$' || n < 0 {
		return "", 0, fmt.Errorf("reply %q", head)
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return "", 0, err
	}
	return string(b[:n]), len(head) + len(b), nil
}

func (c *resp) setAndGet(r *rand.Rand, n int) error {
	keys, values := make([]string, n), make([]string, n)
	for i := range n {
		value := make([]byte, r.IntN(1<<r.IntN(17))) // mostly small, up to 64 KiB
		for i := range value {
			value[i] = byte(r.Uint32())
		}
		keys[i], values[i] = fmt.Sprintf("key:%d:%d", r.Uint64(), i), string(value)
		c.command("SET", keys[i], values[i])
	}
	for _, k := range keys {
		c.command("GET", k)
	}
	if err := c.out.Flush(); err != nil {
		return err
	}
	for range n {
		if ok, err := c.in.ReadString('\n'); err != nil || ok != "+OK\r\n" {
			return fmt.Errorf("SET: %q, %w", ok, err)
		}
	}
	for i, want := range values {
		got, _, err := c.bulk()
		if err != nil {
			return fmt.Errorf("GET: %w", err)
		}
		if got != want {
			return fmt.Errorf("GET %s: %d bytes that are not the %d set", keys[i], len(got), len(want))
		}
	}
	return nil
}

func (c *resp) info() (stats map[string]string, wire int, err error) {
	c.command("INFO", "everything")
	if err := c.out.Flush(); err != nil {
		return nil, 0, err
	}
	text, wire, err := c.bulk()
	stats = map[string]string{}
	for l := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), ":"); ok {
			stats[k] = v
		}
	}
	return stats, wire, err
}

func TestRedis(t *testing.T) {
	require(t, "redis-server", "redis-benchmark")
	out, s := accelerated(t, helperCommand("redis", strconv.Itoa(freePort(t)))...)
	var report redisReport
	decode(t, out, &report)
	checkRedis(t, report, s)
}

// blockingRedis: redis-benchmark asks for the server's configuration first, over
// one connection that it turns to blocking as soon as it stands.
const blockingRedis = 1

func checkRedis(t *testing.T, report redisReport, s summary) {
	t.Helper()
	a, stack := s.Accel, s.Accel.StackTotal()
	if want := uint64(redisClients + 2*50 + blockingRedis); report.Connections != want {
		t.Errorf("the server accepted %d connections, want %d", report.Connections, want)
	}
	if a.Connections != report.Connections || a.Joined != report.Connections || len(a.NotJoined)+len(a.Faults) > 0 {
		t.Errorf("want all %d connections joined: %+v", report.Connections, a)
	}
	if a.Left["blocking"] != blockingRedis || leftEarly(a) != 1 {
		t.Errorf("left: %v, want only the blocking client", a.Left)
	}
	if a.Redirected.Bytes*10 < report.Bytes*9 {
		t.Errorf("%d of %d bytes went socket to socket, want 90 %%", a.Redirected.Bytes, report.Bytes)
	}
	// The blocking connection is not counted any more once it has left.
	if total := a.Redirected.Bytes + stack.Bytes; total > report.Bytes || total+1000 < report.Bytes {
		t.Errorf("shunt counts %d bytes, the server %d", total, report.Bytes)
	}
	t.Logf("%d connections; socket to socket %d messages, %d bytes; by the stack %v; the server counts %d bytes",
		a.Joined, a.Redirected.Messages, a.Redirected.Bytes, a.Stack, report.Bytes)
}
