// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shuntnet/shunt/internal/kernel"
)

// nginxConf wants: directory, port of the front, port of the application.
// The front serves files in its two ways and hands on to the application.
const nginxConf = `daemon off;
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
	keepalive_requests 100000000;
	client_max_body_size 64m;
	upstream application {
		server 127.0.0.1:%[3]d;
		keepalive 16;
	}
	server {
		listen 127.0.0.1:%[2]d;
		location /sendfile/ { alias %[1]s/files/; sendfile on; }
		location /write/ { alias %[1]s/files/; sendfile off; }
		location /proxy/ {
			proxy_pass http://application/;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
		}
		location /unbuffered/ {
			proxy_pass http://application/;
			proxy_buffering off;
			proxy_request_buffering off;
			proxy_http_version 1.1;
		}
	}
	server {
		listen 127.0.0.1:%[3]d;
		root %[1]s/files;
		dav_methods PUT;
	}
}
`

// Bodies larger than every buffer on the way are where a reader that asks how
// much there is (FIONREAD), or a writer that is told to wait, would show.
var nginxSizes = []int{1, 2, 100, 1 << 10, 4095, 4096, 65535, 65536, 65537, 300_000, 1 << 20, 5_000_001, 8 << 20}

// nginxUses are what a helper does with its nginx.
var nginxUses = map[string]func(base string, want bodies) (nginxReport, error){
	"files": func(base string, want bodies) (report nginxReport, err error) {
		if report.Body, err = fetchAll(base, want, "sendfile", "write"); err != nil {
			return report, err
		}
		err = report.wrk(base + "sendfile/small")
		return report, err
	},
	"proxy": func(base string, want bodies) (report nginxReport, err error) {
		if report.Body, err = fetchAll(base, want, "proxy", "unbuffered"); err != nil {
			return report, err
		}
		err = report.wrk(base + "proxy/small")
		return report, err
	},
	"uploads":      uploads,
	"long headers": longHeaders,
}

type bodies map[int][sha256.Size]byte // hash by size

// slow bounds one request: a hang is told long before the test ends.
const slow = 5 * time.Second

// wrkCheck makes wrk compare every body.
const wrkCheck = `
function init(args) expected = args[1] end
function response(status, headers, body)
	if status ~= 200 or body ~= expected then
		io.stderr:write("a wrong response: " .. status .. ", " .. #body .. " bytes\n")
		os.exit(3)
	end
end
`

type nginxReport struct {
	Requests uint64 // that wrk made
	Body     uint64 // bytes of all verified bodies
}

// nginx runs an nginx in a directory and uses it.
func nginx(args []string) error {
	use, dir := nginxUses[args[0]], args[1]
	front, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	app, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	files := filepath.Join(dir, "files")
	if err := errors.Join(os.Mkdir(files, 0o755), os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, front, app), 0o644)); err != nil {
		return err
	}
	want := bodies{}
	r := rand.NewChaCha8([32]byte{3})
	for _, size := range nginxSizes {
		b := make([]byte, size)
		r.Read(b) //nolint:errcheck // never fails
		want[size] = sha256.Sum256(b)
		if err := os.WriteFile(filepath.Join(files, strconv.Itoa(size)), b, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(files, "small"), []byte(small), 0o644); err != nil {
		return err
	}
	stop, err := server("", "nginx", "-p", dir, "-c", conf, "-e", "stderr")
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", front)
	report := nginxReport{}
	if err = listening(address); err == nil {
		report, err = use("http://"+address+"/", want)
	}
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

// small is the content of the file that wrk fetches: 1 KiB.
var small = strings.Repeat("a small file.\n", 73) + "12"

// fetchAll fetches each file by each path, on connections that are kept and on
// new ones, all paths at the same time.
func fetchAll(base string, want bodies, paths ...string) (bytes uint64, err error) {
	keepAlive := &http.Client{Transport: &http.Transport{}, Timeout: slow}
	closing := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: slow}
	defer keepAlive.CloseIdleConnections()
	var g errgroup.Group
	for _, path := range paths {
		for _, c := range []*http.Client{keepAlive, closing} {
			g.Go(func() error {
				for _, size := range nginxSizes {
					if err := fetch(c, fmt.Sprintf("%s%s/%d", base, path, size), size, want[size]); err != nil {
						return err
					}
				}
				return nil
			})
			for _, size := range nginxSizes {
				bytes += uint64(size)
			}
		}
	}
	return bytes, g.Wait()
}

// uploads puts files through the proxy and fetches them again.
func uploads(base string, _ bodies) (report nginxReport, err error) {
	c := &http.Client{Transport: &http.Transport{}, Timeout: slow}
	defer c.CloseIdleConnections()
	r := rand.NewChaCha8([32]byte{4})
	for _, path := range []string{"proxy", "unbuffered"} {
		for _, size := range nginxSizes {
			b := make([]byte, size)
			r.Read(b) //nolint:errcheck // never fails
			url := fmt.Sprintf("%s%s/put-%s-%d", base, path, path, size)
			if err := put(c, url, b); err != nil {
				return report, err
			}
			if err := fetch(c, url, size, sha256.Sum256(b)); err != nil {
				return report, err
			}
			report.Body += 2 * uint64(size)
		}
	}
	return report, nil
}

// longHeaders sends requests, each on a connection of its own, that are larger
// than the 1 KiB buffer into which nginx reads them first.
func longHeaders(base string, want bodies) (report nginxReport, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: slow}
	for _, cookie := range []int{1, 500, 900, 1000, 2000, 4000, 7000} {
		req, err := http.NewRequest(http.MethodGet, base+"write/4096", nil)
		if err != nil {
			return report, err
		}
		req.Header.Set("Cookie", strings.Repeat("c", cookie))
		if err := roundTrip(c, req, 4096, want[4096]); err != nil {
			return report, fmt.Errorf("with a cookie of %d bytes: %w", cookie, err)
		}
		report.Body += 4096
	}
	return report, nil
}

func (report *nginxReport) wrk(url string) error {
	script := filepath.Join(os.TempDir(), fmt.Sprintf("shunt-e2e-%d.lua", os.Getpid()))
	if err := os.WriteFile(script, []byte(wrkCheck), 0o644); err != nil {
		return err
	}
	defer os.Remove(script)
	out, err := exec.Command("wrk", "-t1", "-c32", "-d1s", "-s", script, url, "--", small).CombinedOutput()
	if err != nil {
		return fmt.Errorf("wrk: %w: %s", err, out)
	}
	m := regexp.MustCompile(`(\d+) requests in`).FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("Socket errors")) || bytes.Contains(out, []byte("Non-2xx")) {
		return fmt.Errorf("wrk: %s", out)
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	report.Requests += n
	report.Body += n * uint64(len(small))
	return err
}

// listening waits until somebody listens there.
func listening(address string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

func fetch(c *http.Client, url string, size int, want [sha256.Size]byte) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return roundTrip(c, req, size, want)
}

func roundTrip(c *http.Client, req *http.Request, size int, want [sha256.Size]byte) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	h := sha256.New()
	n, err := io.Copy(h, resp.Body)
	if err != nil {
		return fmt.Errorf("%s, after %d bytes: %w", req.URL, n, err)
	}
	if resp.StatusCode != http.StatusOK || n != int64(size) || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%s: %s, %d bytes, hash %x", req.URL, resp.Status, n, h.Sum(nil))
	}
	return nil
}

func put(c *http.Client, url string, b []byte) error {
	req, err := http.NewRequest(http.MethodPut, url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s, %w: %s", url, resp.Status, err, text)
	}
	return nil
}

func TestNginx(t *testing.T) {
	require(t, "nginx", "wrk")
	// nginx goes by FIONREAD. Where the kernel miscounts it, doctor advises these.
	var flags []string
	if err := kernel.CheckFIONREAD(); err != nil {
		t.Logf("%v: with what doctor advises", err)
		flags = []string{"--accept", "G5", "--max-queue", "65536"}
	}
	for use := range nginxUses {
		t.Run(use, func(t *testing.T) {
			ports := []string{strconv.Itoa(freePort(t)), strconv.Itoa(freePort(t))}
			var plain nginxReport
			decode(t, command(t, helperCommand("nginx", use, t.TempDir(), ports[0], ports[1])...).succeed(t), &plain)
			out, s := acceleratedWith(t, flags, helperCommand("nginx", use, t.TempDir(), ports[0], ports[1])...)
			var report nginxReport
			decode(t, out, &report)
			// How often wrk asked is a matter of speed; its bodies were all compared.
			if bodies := func(r nginxReport) uint64 { return r.Body - r.Requests*uint64(len(small)) }; bodies(plain) != bodies(report) || bodies(plain) == 0 {
				t.Errorf("bodies of %d bytes without shunt, %d with", bodies(plain), bodies(report))
			}
			a, stack := s.Accel, s.Accel.StackTotal()
			var blocking uint64
			if report.Requests > 0 {
				blocking = 1 // wrk's first, with which it only looks whether anybody listens
			}
			if a.Joined+blocking != a.Connections || a.NotJoined["blocking"] != blocking || leftEarly(a)+len(a.Faults) > 0 {
				t.Errorf("want all connections joined but %d: %+v", blocking, a)
			}
			// What a pair sends after it left for plain TCP is not counted.
			if total := a.Redirected.Bytes + stack.Bytes; total < report.Body && a.Left["stream"] == 0 {
				t.Errorf("shunt counts %d bytes, the bodies alone were %d", total, report.Body)
			}
			if a.Redirected.Messages < report.Requests {
				t.Errorf("%d messages went socket to socket, wrk made %d requests", a.Redirected.Messages, report.Requests)
			}
			t.Logf("%d connections, %d requests by wrk, %d bytes of bodies; socket to socket %d messages, %d bytes; by the stack %v",
				a.Joined, report.Requests, report.Body, a.Redirected.Messages, a.Redirected.Bytes, a.Stack)
		})
	}
}
