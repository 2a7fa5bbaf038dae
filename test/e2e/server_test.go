// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	nobody          = 65534 // initdb refuses to run as root
	pgClients       = 8
	pgTransactions  = 100 // of each client
	pgRows          = 200_000
	redisAllEach    = 1000      // requests of each kind
	iperfBytes      = 256 << 20 // of each direction
	iperfUnread     = 128 << 20 // most that receivers (8 of them) may leave in buffers when the test is over
	httpEchoClients = 4
)

// postgresBin finds Debian's server programs, which are not in PATH.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		if p, err := exec.LookPath("initdb"); err == nil {
			return filepath.Dir(p), nil
		}
		return "", errors.New("no PostgreSQL here (make deps)")
	}
	sort.Strings(found)
	return filepath.Dir(found[len(found)-1]), nil
}

// asNobody runs PostgreSQL's programs, which refuse root.
func asNobody(dir string, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// postgresql makes a cluster, runs pgbench with a fixed seed, moves megabytes
// both ways and lets the server check its own sums.
func postgresql(dir string) (out outcome, err error) {
	out.Results = map[string]string{}
	bin, err := postgresBin()
	if err != nil {
		return out, err
	}
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	port := strconv.Itoa(p[0])
	if err := os.Chown(dir, nobody, nobody); err != nil {
		return out, err
	}
	data := filepath.Join(dir, "data")
	if text, err := asNobody(dir, filepath.Join(bin, "initdb"), "-D", data, "-U", "test", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return out, fmt.Errorf("initdb: %w: %s", err, text)
	}
	cmd := asNobody(dir, filepath.Join(bin, "postgres"), "-D", data, "-h", "127.0.0.1", "-p", port, "-k", dir, "-F")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return out, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		cmd.Process.Signal(unix.SIGINT) //nolint:errcheck // a fast shutdown; it may be gone
		select {
		case e := <-ended:
			err = errors.Join(err, e)
		case <-time.After(patience):
			cmd.Process.Kill() //nolint:errcheck // fails anyway
			err = errors.Join(err, errors.New("postgres does not end"), <-ended)
		}
		if err != nil {
			err = fmt.Errorf("%w; postgres said: %s", err, &said)
		}
	}()
	address := []string{"-h", "127.0.0.1", "-p", port, "-U", "test"}
	deadline := time.Now().Add(patience)
	for {
		if _, err := run("", append([]string{filepath.Join(bin, "pg_isready"), "-q"}, address...)...); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return out, errors.New("postgres is not ready")
		}
		time.Sleep(50 * time.Millisecond)
	}
	pgbench := func(args ...string) (string, error) {
		return run("", append(append([]string{filepath.Join(bin, "pgbench")}, address...), append(args, "postgres")...)...)
	}
	psql := func(stdin, command string) (string, error) {
		return run(stdin, append(append([]string{filepath.Join(bin, "psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"}, address...), "-c", command, "postgres")...)
	}

	if _, err := pgbench("-i", "-q", "-s", "1"); err != nil {
		return out, err
	}
	// Of each protocol: what is read and written in how many messages differs.
	for _, protocol := range []string{"simple", "extended", "prepared"} {
		text, err := pgbench("-n", "-M", protocol, "-c", strconv.Itoa(pgClients), "-j", "2", "-t", strconv.Itoa(pgTransactions), "--random-seed=77")
		if err != nil {
			return out, err
		}
		want := fmt.Sprintf("number of transactions actually processed: %[1]d/%[1]d", pgClients*pgTransactions)
		if !strings.Contains(text, want) || !strings.Contains(text, "number of failed transactions: 0 ") {
			return out, fmt.Errorf("pgbench -M %s: %s", protocol, text)
		}
		out.Results["pgbench "+protocol] = want
		out.Note += protocol + " " + regexp.MustCompile(`tps = [0-9.]+`).FindString(text) + " "
	}
	sums, err := psql("", `select (select sum(abalance) from pgbench_accounts) || ' ' || (select sum(bbalance) from pgbench_branches)
		|| ' ' || (select sum(tbalance) from pgbench_tellers) || ' ' || (select sum(delta) from pgbench_history)
		|| ' ' || (select count(*) from pgbench_history)`)
	if err != nil {
		return out, err
	}
	f := strings.Fields(sums)
	if len(f) != 5 || f[0] != f[1] || f[1] != f[2] || f[2] != f[3] || f[4] != strconv.Itoa(3*pgClients*pgTransactions) {
		return out, fmt.Errorf("the books do not balance: %s", sums)
	}
	out.Results["books"] = sums

	// Many megabytes down, up, and down again.
	down, err := psql("", fmt.Sprintf("copy (select i, md5(i::text) from generate_series(1, %d) i) to stdout", pgRows))
	if err != nil {
		return out, err
	}
	if _, err := psql("", "create table copied (i int, h text)"); err != nil {
		return out, err
	}
	if _, err := psql(down, "copy copied from stdin"); err != nil {
		return out, err
	}
	back, err := psql("", "copy (select * from copied order by i) to stdout")
	if err != nil {
		return out, err
	}
	if back != down || strings.Count(down, "\n") != pgRows {
		return out, fmt.Errorf("%d bytes came back of %d copied in", len(back), len(down))
	}
	wrong, err := psql("", "select count(*) from copied where h <> md5(i::text)")
	if err != nil {
		return out, err
	}
	out.Results["copy"] = hashOf([]byte(back))
	out.Results["rows that the server finds wrong"] = strings.TrimSpace(wrong)
	if out.Results["rows that the server finds wrong"] != "0" {
		return out, fmt.Errorf("the server finds %s rows wrong", wrong)
	}
	return out, nil
}

const nodeServer = `
const http = require('http');
http.createServer((req, res) => {
	if (req.url === '/pipe') { // as it comes
		res.writeHead(200);
		req.pipe(res);
		return;
	}
	const parts = [];
	req.on('data', d => parts.push(d));
	req.on('end', () => res.end(Buffer.concat(parts)));
}).listen(Number(process.argv[2]), '127.0.0.1', () => console.log('ready'));
process.on('SIGTERM', () => process.exit(0));
`

const nodeClient = `
const http = require('http'), crypto = require('crypto');
const agent = new http.Agent({keepAlive: true, maxSockets: 4});
const sizes = JSON.parse(process.argv[3]);
function once(path, size) {
	return new Promise((ok, bad) => {
		const b = Buffer.alloc(size);
		for (let i = 0; i < size; i++) b[i] = (i * 2654435761 + size) >>> 13;
		const req = http.request({host: '127.0.0.1', port: Number(process.argv[2]), path, method: 'POST', agent,
			headers: {'content-length': size}}, res => {
			const h = crypto.createHash('sha256');
			res.on('data', d => h.update(d));
			res.on('end', () => {
				const got = h.digest('hex'), want = crypto.createHash('sha256').update(b).digest('hex');
				got === want ? ok([path + ' ' + size, got]) : bad(new Error(path + ' ' + size + ': wrong hash'));
			});
		});
		req.on('error', bad);
		req.end(b);
	});
}
const all = [];
for (const path of ['/pipe', '/whole']) for (const size of sizes) for (let i = 0; i < 2; i++) all.push(once(path, size));
Promise.all(all).then(r => { console.log(JSON.stringify(Object.fromEntries(r))); process.exit(0); },
	e => { console.error(e); process.exit(1); });
`

func nodeEcho(dir string) (out outcome, err error) {
	out.Results = map[string]string{}
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	serverFile, err := writeIn(dir, "server.js", nodeServer)
	if err != nil {
		return out, err
	}
	clientFile, err := writeIn(dir, "client.js", nodeClient)
	if err != nil {
		return out, err
	}
	sizes, err := json.Marshal(bodySizes)
	if err != nil {
		return out, err
	}
	err = withServers(func() error {
		if err := echoOverHTTP(fmt.Sprintf("http://127.0.0.1:%d", p[0]), &out, "/pipe", "/whole"); err != nil {
			return err
		}
		text, err := run("", "node", clientFile, strconv.Itoa(p[0]), string(sizes))
		if err != nil {
			return err
		}
		hashes := map[string]string{}
		if err := json.Unmarshal([]byte(text), &hashes); err != nil {
			return fmt.Errorf("node said %q: %w", text, err)
		}
		for k, v := range hashes {
			out.Results["node "+k] = v
		}
		return nil
	}, []string{"ready", "node", serverFile, strconv.Itoa(p[0])})
	return out, err
}

// The JDK's own HTTP server waits with a selector and then makes the socket
// blocking to read a request. The second server goes by available().
const javaServer = `
import com.sun.net.httpserver.HttpServer;
import java.io.*;
import java.net.*;
import java.util.concurrent.Executors;

public class Echo {
	public static void main(String[] args) throws Exception {
		InetAddress lo = InetAddress.getByName("127.0.0.1");
		HttpServer s = HttpServer.create(new InetSocketAddress(lo, Integer.parseInt(args[0])), 64);
		s.setExecutor(Executors.newFixedThreadPool(8));
		s.createContext("/whole", x -> {
			byte[] b = x.getRequestBody().readAllBytes();
			x.sendResponseHeaders(200, b.length);
			try (OutputStream o = x.getResponseBody()) { o.write(b); }
		});
		s.createContext("/available", x -> {
			InputStream in = x.getRequestBody();
			ByteArrayOutputStream all = new ByteArrayOutputStream();
			for (int c; (c = in.read()) >= 0; ) {
				all.write(c);
				for (int n; (n = in.available()) > 0; ) all.write(in.readNBytes(n));
			}
			x.sendResponseHeaders(200, all.size());
			try (OutputStream o = x.getResponseBody()) { all.writeTo(o); }
		});
		s.start();
		System.out.println("ready");
	}
}
`

func javaEcho(dir string) (out outcome, err error) {
	out.Results = map[string]string{}
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	file, err := writeIn(dir, "Echo.java", javaServer)
	if err != nil {
		return out, err
	}
	err = withServers(func() error {
		return echoOverHTTP(fmt.Sprintf("http://127.0.0.1:%d", p[0]), &out, "/whole", "/available")
	}, []string{"ready", "java", "-Xmx256m", "-XX:TieredStopAtLevel=1", file, strconv.Itoa(p[0])})
	return out, err
}

// echoOverHTTP posts bodies of all sizes and compares what comes back.
func echoOverHTTP(base string, out *outcome, paths ...string) error {
	type result struct{ key, hash string }
	results := make(chan result, 4096)
	var g errgroup.Group
	for who := range httpEchoClients {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: who == 0}, Timeout: slowest}
		g.Go(func() error {
			defer c.CloseIdleConnections()
			for _, path := range paths {
				for _, size := range bodySizes {
					b := body(who, size)
					resp, err := c.Post(base+path, "application/octet-stream", bytes.NewReader(b))
					if err != nil {
						return fmt.Errorf("%d bytes: %w", size, err)
					}
					got, err := io.ReadAll(resp.Body)
					if err := errors.Join(err, resp.Body.Close()); err != nil {
						return fmt.Errorf("%s, %d bytes: after %d: %w", path, size, len(got), err)
					}
					if resp.StatusCode != http.StatusOK || !bytes.Equal(got, b) {
						return fmt.Errorf("%s: %s, %d bytes came back, not the %d sent", path, resp.Status, len(got), size)
					}
					results <- result{fmt.Sprintf("go %d %s %d", who, path, size), hashOf(got)}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	close(results)
	for r := range results {
		out.Results[r.key] = r.hash
	}
	return nil
}

// iperf3 in every shape; each ends after a number of bytes.
func iperf3(string) (out outcome, err error) {
	out.Results = map[string]string{}
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	port := strconv.Itoa(p[0])
	for name, args := range map[string][]string{
		"plain": nil, "-R": {"-R"}, "--bidir": {"--bidir"}, "-P 8": {"-P", "8"},
	} {
		stop, err := server("Server listening", "iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush")
		if err != nil {
			return out, err
		}
		text, err := run("", append([]string{"iperf3", "-c", "127.0.0.1", "-p", port, "-n", strconv.Itoa(iperfBytes), "-J"}, args...)...)
		if e := stop(); err == nil && e != nil && !strings.Contains(e.Error(), "process already finished") { // -1: it ends by itself
			err = e
		}
		if err != nil {
			return out, fmt.Errorf("iperf3 %s: %w", name, err)
		}
		rates, err := checkIperf(text, name == "--bidir")
		if err != nil {
			return out, fmt.Errorf("iperf3 %s: %w", name, err)
		}
		out.Results[name] = "complete"
		out.Note += fmt.Sprintf("%s %s Gbit/s; ", name, rates)
	}
	return out, nil
}

func checkIperf(text string, bidir bool) (rates string, err error) {
	type sum struct {
		Bytes         int64   `json:"bytes"`
		BitsPerSecond float64 `json:"bits_per_second"`
	}
	var r struct {
		Error string `json:"error"`
		End   struct {
			Sent            *sum `json:"sum_sent"`
			Received        *sum `json:"sum_received"`
			SentReverse     *sum `json:"sum_sent_bidir_reverse"`
			ReceivedReverse *sum `json:"sum_received_bidir_reverse"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return "", err
	}
	if r.Error != "" {
		return "", errors.New(r.Error)
	}
	pairs := [][2]*sum{{r.End.Sent, r.End.Received}}
	if bidir {
		pairs = append(pairs, [2]*sum{r.End.SentReverse, r.End.ReceivedReverse})
	}
	var moved int64
	for _, p := range pairs {
		sent, received := p[0], p[1]
		if sent == nil || received == nil {
			return "", fmt.Errorf("no sums: %s", text)
		}
		if received.Bytes > sent.Bytes || received.Bytes < sent.Bytes-iperfUnread || received.Bytes == 0 {
			return "", fmt.Errorf("%d bytes sent, %d received", sent.Bytes, received.Bytes)
		}
		moved = max(moved, sent.Bytes)
		rates += fmt.Sprintf("%.1f ", received.BitsPerSecond/1e9)
	}
	// In both directions at once, the test is over when one has its bytes.
	if moved < iperfBytes {
		return "", fmt.Errorf("%d bytes were sent, want %d", moved, iperfBytes)
	}
	return strings.TrimSpace(rates), nil
}

// redisAll runs all of redis-benchmark, looks at the data with redis-cli, and
// takes the server's digest of everything it holds.
func redisAll(string) (out outcome, err error) {
	out.Results = map[string]string{}
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	port := strconv.Itoa(p[0])
	stop, err := server("Ready to accept connections", "redis-server", "--bind", "127.0.0.1", "--port", port,
		"--save", "", "--appendonly", "no", "--enable-debug-command", "local")
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	cli := func(stdin string, args ...string) (string, error) {
		return run(stdin, append([]string{"redis-cli", "-h", "127.0.0.1", "-p", port}, args...)...)
	}
	for _, args := range [][]string{{"-c", "20"}, {"-c", "20", "-P", "16", "-d", "100"}} {
		text, err := run("", append([]string{"redis-benchmark", "-h", "127.0.0.1", "-p", port, "-e", "-n", strconv.Itoa(redisAllEach), "--csv"}, args...)...)
		if err != nil {
			return out, err
		}
		tests := 0
		for l := range strings.Lines(text) {
			if f := strings.Split(l, ","); len(f) > 1 && f[0] != `"test"` {
				tests++
				out.Results["benchmark "+strings.Join(args, " ")+" "+f[0]] = "done"
			}
		}
		if tests < 15 {
			return out, fmt.Errorf("redis-benchmark ran %d tests: %s", tests, text)
		}
		out.Note += fmt.Sprintf("%d tests; ", tests)
	}
	// A large value both ways, a pipe of many commands, and what they left.
	big := strings.Repeat("0123456789abcdef", 8<<20/16)
	if _, err := cli(big, "-x", "set", "big"); err != nil {
		return out, err
	}
	got, err := cli("", "--raw", "get", "big")
	if err != nil {
		return out, err
	}
	if strings.TrimSuffix(got, "\n") != big {
		return out, fmt.Errorf("%d bytes came back of %d set", len(got), len(big))
	}
	var pipe strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&pipe, "SET pipe:%d %d\r\nINCRBY sum %d\r\n", i, i*i, i)
	}
	text, err := cli(pipe.String(), "--pipe")
	if err != nil {
		return out, err
	}
	if !strings.Contains(text, "errors: 0, replies: 40000") {
		return out, fmt.Errorf("redis-cli --pipe: %s", text)
	}
	for _, ask := range []string{"get sum", "dbsize", "strlen big", "get counter:__rand_int__", "llen mylist", "scard myset", "hlen myhash", "debug digest"} {
		answer, err := cli("", strings.Fields(ask)...)
		if err != nil {
			return out, err
		}
		if strings.Contains(answer, "ERR") {
			return out, fmt.Errorf("redis-cli %s: %s", ask, answer)
		}
		out.Results[ask] = strings.TrimSpace(answer)
	}
	return out, nil
}
