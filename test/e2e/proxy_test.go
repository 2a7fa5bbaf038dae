// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shuntnet/shunt/internal/kernel"
)

// bodySizes of everything that is sent through a proxy.
var bodySizes = []int{1, 2, 100, 1 << 10, 4096, 16_385, 65_536, 300_000, 1 << 20, 8 << 20}

// body is the same bytes for the same seed and size.
func body(seed, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(size), byte(size >> 8), byte(size >> 16), 5})
	r.Read(b) //nolint:errcheck // never fails
	return b
}

func listenLoopback() (*net.TCPListener, error) {
	return net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// Conversations with the origin: the client's first byte says which.
const (
	talkEcho   = 'e' // it sends back what comes, at once
	talkAnswer = 'a' // it reads to the end of the stream, then answers: the client shuts down first
	talkPush   = 'p' // it sends and shuts down first; the client's bytes come after that
)

const (
	pushed     = 300_000      // bytes of the origin's in talkPush
	proxyTimes = 3            // how often each conversation is had
	slowest    = patience / 3 // bound of one conversation: a hang is told before the program is killed
)

// origin is the server behind the proxies under test. Its reads and writes are
// plain ones (no splice). What talkPush got goes to a channel.
type origin struct {
	*net.TCPListener
	pushes chan string
}

func newOrigin() (*origin, error) {
	l, err := listenLoopback()
	if err != nil {
		return nil, err
	}
	o := &origin{l, make(chan string, 1024)}
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return // closed
			}
			go o.serve(c)
		}
	}()
	return o, nil
}

func (o *origin) serve(c *net.TCPConn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(slowest)) //nolint:errcheck // the client notices
	r, w := struct{ io.Reader }{c}, struct{ io.Writer }{c}
	kind := make([]byte, 1)
	if _, err := io.ReadFull(r, kind); err != nil {
		return
	}
	// An error shows at the client, as a short answer.
	switch kind[0] {
	case talkEcho:
		io.Copy(w, r) //nolint:errcheck // as above
	case talkAnswer:
		if got, err := io.ReadAll(r); err == nil {
			w.Write(got) //nolint:errcheck // as above
		}
	case talkPush:
		w.Write(body('p', pushed)) //nolint:errcheck // as above
		c.CloseWrite()             //nolint:errcheck // as above
		got, err := io.ReadAll(r)
		if err != nil {
			o.pushes <- err.Error()
			return
		}
		o.pushes <- hashOf(got)
		return
	}
	c.CloseWrite()         //nolint:errcheck // as above
	io.Copy(io.Discard, r) //nolint:errcheck // as above
}

// converse has one conversation with an origin, through a proxy, and returns
// the hash of what came back, after comparing it.
func converse(address string, kind byte, size int) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	if err := c.SetDeadline(time.Now().Add(slowest)); err != nil {
		return "", err
	}
	r, w := struct{ io.Reader }{c}, struct{ io.Writer }{c}
	b := body(int(kind), size)
	send := func() error {
		_, err := w.Write(b)
		return errors.Join(err, c.CloseWrite())
	}
	if _, err := w.Write([]byte{kind}); err != nil {
		return "", err
	}
	want := b
	var got []byte
	switch kind {
	case talkPush:
		want = body('p', pushed)
		if got, err = io.ReadAll(r); err == nil {
			err = send()
		}
	case talkAnswer:
		if err = send(); err == nil {
			got, err = io.ReadAll(r)
		}
	default:
		var g errgroup.Group
		g.Go(send)
		got, err = io.ReadAll(r)
		err = errors.Join(err, g.Wait())
	}
	if err != nil {
		return "", fmt.Errorf("%c, %d bytes: after %d bytes: %w", kind, size, len(got), err)
	}
	if !bytes.Equal(got, want) {
		return "", fmt.Errorf("%c: %d bytes came back, not the %d expected", kind, len(got), len(want))
	}
	return hashOf(got), nil
}

// throughProxy has all conversations through a proxy, several at a time.
func throughProxy(address string, o *origin, out *outcome) error {
	type one struct {
		kind byte
		size int
	}
	var all []one
	for range proxyTimes {
		for _, kind := range []byte{talkEcho, talkAnswer, talkPush} {
			for _, size := range bodySizes {
				all = append(all, one{kind, size})
			}
		}
	}
	hashes := make([]string, len(all))
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(6)
	for i, c := range all {
		g.Go(func() (err error) {
			if ctx.Err() != nil { // one failed: so will the others, and each takes its time
				return nil
			}
			hashes[i], err = converse(address, c.kind, c.size)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	pushes := map[string]int{} // arrived after the origin's end of stream
	for _, c := range all {
		if c.kind != talkPush {
			continue
		}
		select {
		case h := <-o.pushes:
			pushes[h]++
		case <-time.After(slowest):
			return errors.New("the origin did not get everything")
		}
	}
	var total int
	for i, c := range all {
		out.Results[fmt.Sprintf("%c %d", c.kind, c.size)] = hashes[i]
		total += c.size
	}
	for _, size := range bodySizes {
		if n := pushes[hashOf(body(talkPush, size))]; n != proxyTimes {
			return fmt.Errorf("the origin got %d of %d uploads of %d bytes: %v", n, proxyTimes, size, pushes)
		}
	}
	out.Note = fmt.Sprintf("%d conversations, %d bytes sent", len(all), total)
	return nil
}

// goProxy is what everybody writes: io.Copy both ways, which is splice(2) on
// Linux, and half-closes handed on.
func goProxy(string) (outcome, error) {
	out := outcome{Results: map[string]string{}}
	o, err := newOrigin()
	if err != nil {
		return out, err
	}
	defer o.Close()
	l, err := listenLoopback()
	if err != nil {
		return out, err
	}
	defer l.Close()
	half := func(to, from *net.TCPConn) {
		if _, err := io.Copy(to, from); err != nil {
			to.SetLinger(0) //nolint:errcheck // a broken stream must not look like a complete one
			to.Close()
			return
		}
		to.CloseWrite() //nolint:errcheck // the other side is gone, then
	}
	go func() {
		for {
			down, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer down.Close()
				up, err := net.DialTCP("tcp", nil, o.Addr().(*net.TCPAddr))
				if err != nil {
					return
				}
				defer up.Close()
				done := make(chan bool)
				go func() {
					half(up, down)
					close(done)
				}()
				half(down, up)
				<-done
			}()
		}
	}()
	return out, throughProxy(l.Addr().String(), o, &out)
}

func socat(string) (outcome, error) {
	out := outcome{Results: map[string]string{}}
	o, err := newOrigin()
	if err != nil {
		return out, err
	}
	defer o.Close()
	p, err := ports(1)
	if err != nil {
		return out, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", p[0])
	// -t: how long the other direction may go on after the end of one.
	stop, err := server("listening on", "socat", "-d", "-d", "-t", "30",
		fmt.Sprintf("TCP4-LISTEN:%d,bind=127.0.0.1,reuseaddr,fork,backlog=64", p[0]), "TCP4:"+o.Addr().String())
	if err != nil {
		return out, err
	}
	err = throughProxy(address, o, &out)
	return out, errors.Join(err, terminated(stop()))
}

// haproxyConf wants: a directory, the splice options, the port for HTTP, for
// TCP, nginx's, and the origin's.
const haproxyConf = `global
	maxconn 256
	nbthread 2
	stats socket %[1]s/stats level admin
defaults
	%[2]s
	timeout connect 20s
	timeout client 20s
	timeout server 20s
	timeout client-fin 20s
	timeout tunnel 20s
frontend web
	mode http
	bind 127.0.0.1:%[3]d
	default_backend nginx
backend nginx
	mode http
	http-reuse safe
	server nginx 127.0.0.1:%[5]d
listen tcp
	mode tcp
	bind 127.0.0.1:%[4]d
	server origin 127.0.0.1:%[6]d
`

// originConf is an nginx that stores and serves bodies. It wants: a directory,
// the port, the sizes of its buffers.
const originConf = `daemon off;
worker_processes 1;
user root;
pid %[1]s/pid;
error_log stderr error;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	client_max_body_size 64m;
	%[3]s
	keepalive_requests 100000;
	server {
		listen 127.0.0.1:%[2]d;
		root %[1]s;
		dav_methods PUT;
		location /files/ { sendfile on; create_full_put_path on; }
	}
}
`

// haproxyWith puts HAProxy in front of nginx (HTTP) and of the origin (TCP).
func haproxyWith(options ...string) func(dir string) (outcome, error) {
	return func(dir string) (out outcome, err error) {
		out.Results = map[string]string{}
		o, err := newOrigin()
		if err != nil {
			return out, err
		}
		defer o.Close()
		p, err := ports(3)
		if err != nil {
			return out, err
		}
		buffers := ""
		if kernel.CheckFIONREAD() != nil {
			// nginx asks how much there is left only after a read that filled its
			// buffer, and waits for ever if a wrong count says that nothing is.
			buffers = "client_header_buffer_size 16m; client_body_buffer_size 16m;"
		}
		nginxFile, err := writeIn(dir, "nginx.conf", fmt.Sprintf(originConf, dir, p[2], buffers))
		if err != nil {
			return out, err
		}
		var opts []string
		for _, o := range options {
			opts = append(opts, "option "+o)
		}
		haproxyFile, err := writeIn(dir, "haproxy.cfg",
			fmt.Sprintf(haproxyConf, dir, strings.Join(opts, "\n\t"), p[0], p[1], p[2], portOf(o)))
		if err != nil {
			return out, err
		}
		err = withServers(func() error {
			for _, port := range p {
				if err := listening(fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
					return err
				}
			}
			if err := bodiesOverHTTP(fmt.Sprintf("http://127.0.0.1:%d/files/", p[0]), &out); err != nil {
				return err
			}
			if err := throughProxy(fmt.Sprintf("127.0.0.1:%d", p[1]), o, &out); err != nil {
				return err
			}
			spliced, err := haproxySpliced(filepath.Join(dir, "stats"))
			out.Note += fmt.Sprintf(", %d bytes spliced by HAProxy", spliced)
			if err == nil && (spliced > 0) != (len(options) > 0) {
				err = fmt.Errorf("HAProxy spliced %d bytes with the options %q: this run does not show what it says", spliced, options)
			}
			return err
		}, []string{"", "nginx", "-p", dir, "-c", nginxFile, "-e", "stderr"}, []string{"", "haproxy", "-db", "-f", haproxyFile})
		return out, err
	}
}

// haproxySpliced asks HAProxy how many bytes it spliced.
func haproxySpliced(socket string) (uint64, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "show info\n"); err != nil {
		return 0, err
	}
	info, err := io.ReadAll(c)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^TotalSpli\w+BytesOut: (\d+)$`).FindSubmatch(info)
	if m == nil {
		return 0, fmt.Errorf("show info does not tell of splicing: %s", info)
	}
	return strconv.ParseUint(string(m[1]), 10, 64)
}

// bodiesOverHTTP puts bodies and fetches them again, on connections that are
// kept and on new ones, several at a time.
func bodiesOverHTTP(base string, out *outcome) error {
	type stored struct {
		key  string
		hash [sha256.Size]byte
	}
	results := make(chan stored, 1024)
	var g errgroup.Group
	for who, closing := range []bool{false, false, true} {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: closing}, Timeout: slowest}
		g.Go(func() error {
			defer c.CloseIdleConnections()
			for _, size := range bodySizes {
				b := body(who, size)
				key := fmt.Sprintf("%d-%d", who, size)
				req, err := http.NewRequest(http.MethodPut, base+key, bytes.NewReader(b))
				if err != nil {
					return err
				}
				resp, err := c.Do(req)
				if err != nil {
					return fmt.Errorf("PUT %s: %w", key, err)
				}
				_, err = io.Copy(io.Discard, bufio.NewReader(resp.Body))
				if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode >= 300 {
					return fmt.Errorf("PUT %s: %s, %w", key, resp.Status, err)
				}
				sum := sha256.Sum256(b)
				if err := fetch(c, base+key, size, sum); err != nil {
					return err
				}
				results <- stored{"http " + key, sum}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	close(results)
	for r := range results {
		out.Results[r.key] = fmt.Sprintf("%x", r.hash)
	}
	return nil
}
