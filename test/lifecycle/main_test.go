// SPDX-License-Identifier: Apache-2.0

// Package lifecycle_test checks what is selected, and that the agent may be
// reloaded, killed, upgraded and taken out while traffic runs (G9).
package lifecycle_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/cli"
	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

const (
	peerEnv  = "SHUNT_TEST_PEER"  // in the environment: this binary is a peer
	agentEnv = "SHUNT_TEST_AGENT" // in the environment: it takes steps, see fault_test.go
	cliEnv   = "SHUNT_TEST_CLI"   // in the environment: it is shunt
	patience = 20 * time.Second   // bound of every wait for something that must come
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(peerEnv) != "":
		servePeer()
	case os.Getenv(agentEnv) != "":
		takeSteps()
	case os.Getenv(cliEnv) != "":
		os.Exit(cli.Main(os.Args[1:]))
	default:
		os.Exit(m.Run())
	}
}

// need skips where the machine cannot run the tests, or fails if none may be skipped.
func need(t *testing.T) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "needs root"
	} else if _, err := kernel.Cgroup2(); err != nil {
		reason = err.Error()
	}
	switch {
	case reason == "":
	case os.Getenv("SHUNT_REQUIRE_ALL") == "1":
		t.Fatalf("SHUNT_REQUIRE_ALL=1, but this test %s", reason)
	default:
		t.Skip(reason)
	}
}

// place is a part of the machine for one test: a cgroup and a pin root.
type place struct {
	t      *testing.T
	cgroup string
	pins   string
	peers  []*peer
}

func newPlace(t *testing.T) *place {
	t.Helper()
	need(t)
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	if err := kernel.EnsureBPFFS("/sys/fs/bpf"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(own, "shunt-test-"+strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))+"-")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, cgroup: dir, pins: filepath.Join("/sys/fs/bpf/shunt", filepath.Base(dir))}
	t.Cleanup(func() {
		for _, peer := range p.peers {
			peer.kill()
		}
		if _, err := node.Unload(t.Context(), node.UnloadOptions{AgentOptions: p.options(), Force: true}); err != nil {
			t.Errorf("remove the pins: %v", err)
		}
		if _, err := os.Stat(p.pins); err == nil {
			t.Errorf("%s is left behind", p.pins)
		}
		var dirs []string
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error { //nolint:errcheck // the function returns none
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			p.until("the cgroup can be removed", func() bool { return os.Remove(dirs[i]) == nil })
		}
	})
	return p
}

func (p *place) options() node.AgentOptions {
	return node.AgentOptions{CgroupRoot: p.cgroup, PinRoot: p.pins}
}

// until waits for what must come.
func (p *place) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Errorf("not within %v: %s", patience, what)
			return
		}
	}
}

// path is the cgroup as selectors name it.
func (p *place) path(sub string) string {
	mount, err := kernel.Cgroup2()
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimPrefix(filepath.Join(p.cgroup, sub), mount)
}

func (p *place) agent(yaml string) *node.Agent {
	p.t.Helper()
	a, err := node.NewAgent(p.config(yaml), p.options())
	if err != nil {
		p.t.Fatalf("start the agent: %v", err)
	}
	return a
}

func (p *place) config(yaml string) *config.Config {
	p.t.Helper()
	cfg, err := config.Parse("test.yaml", []byte("apiVersion: shunt/v1\n"+yaml))
	if err != nil {
		p.t.Fatal(err)
	}
	return cfg
}

func stats(t *testing.T, a *node.Agent) accel.Stats {
	t.Helper()
	s, err := a.Status()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Stats.Faults) > 0 {
		t.Errorf("helper calls failed in the kernel half: %v", s.Stats.Faults)
	}
	return s.Stats
}

// peer is a process with sockets, which does what lines on its stdin say.
type peer struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.Writer
	out  *bufio.Scanner
	mu   sync.Mutex
	done bool
}

// peer starts one in a cgroup below the place's.
func (p *place) peer(sub string, change ...func(*syscall.SysProcAttr)) *peer {
	p.t.Helper()
	dir := filepath.Join(p.cgroup, sub)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), peerEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	for _, c := range change {
		c(cmd.SysProcAttr)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	q := &peer{t: p.t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	p.peers = append(p.peers, q)
	return q
}

func (q *peer) kill() {
	if q.done {
		return
	}
	q.done = true
	q.cmd.Process.Kill() //nolint:errcheck // it may have ended
	q.cmd.Wait()         //nolint:errcheck // killed
}

// do sends one command and returns its answer.
func (q *peer) do(format string, args ...any) (string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := fmt.Fprintf(q.in, format+"\n", args...); err != nil {
		return "", err
	}
	if !q.out.Scan() {
		return "", errors.New("the peer ended")
	}
	answer, ok := strings.CutPrefix(q.out.Text(), "ok ")
	if !ok {
		return "", errors.New(q.out.Text())
	}
	return answer, nil
}

func (q *peer) must(format string, args ...any) string {
	q.t.Helper()
	answer, err := q.do(format, args...)
	if err != nil {
		q.t.Fatalf(format+": %v", append(args, err)...)
	}
	return answer
}

// servePeer is the other side of do: Go's own sockets, which are non-blocking.
func servePeer() {
	conns := map[int]net.Conn{}
	next := 0
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := func() (string, error) {
			f := strings.Fields(in.Text())
			number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
			switch f[0] {
			case "listen": // echoes, or with "sink" only reads when told to
				l, err := net.Listen("tcp", f[1])
				if err != nil {
					return "", err
				}
				if f[2] == "sink" {
					go func() {
						for {
							if c, err := l.Accept(); err == nil {
								accepted <- c
							}
						}
					}()
				} else {
					go echo(l)
				}
				return l.Addr().String(), nil
			case "accepted":
				next++
				conns[next] = <-accepted
				return strconv.Itoa(next), nil
			case "dial":
				c, err := net.Dial("tcp", f[1])
				if err != nil {
					return "", err
				}
				next++
				conns[next] = c
				return strconv.Itoa(next), nil
			case "up":
				lo, err := netlink.LinkByName("lo")
				if err != nil {
					return "", err
				}
				return "", netlink.LinkSetUp(lo)
			case "rename", "address", "neighbour":
				l, err := netlink.LinkByName(f[1])
				if err != nil {
					return "", err
				}
				return "", network(l, f)
			case "exchange": // ID ROUNDS SIZE
				return "", exchange(conns[number(1)], number(2), number(3))
			case "send":
				_, err := conns[number(1)].Write(pattern(0, number(2)))
				return "", err
			case "read":
				got := make([]byte, number(2))
				if _, err := io.ReadFull(conns[number(1)], got); err != nil {
					return "", err
				}
				if !bytes.Equal(got, pattern(0, len(got))) {
					return "", errors.New("wrong bytes")
				}
				return "", nil
			case "run": // ID: exchanges until told to stop
				c, stop, done := conns[number(1)], make(chan struct{}), make(chan string, 1)
				running[number(1)] = run{stop, done}
				go func() {
					rounds := 0
					for {
						select {
						case <-stop:
							done <- fmt.Sprintf("ok %d", rounds)
							return
						default:
						}
						size := 1 + rand.IntN(40000)
						if err := exchange(c, 1, size); err != nil {
							done <- fmt.Sprintf("round %d of %d bytes: %v", rounds, size, err)
							return
						}
						rounds++
					}
				}()
				return "", nil
			case "stop":
				r := running[number(1)]
				close(r.stop)
				answer, ok := strings.CutPrefix(<-r.done, "ok ")
				if !ok {
					return "", errors.New(answer)
				}
				return answer, nil
			case "close":
				return "", conns[number(1)].Close()
			}
			return "", errors.New("unknown command")
		}()
		if err != nil {
			fmt.Println("error", err)
		} else {
			fmt.Println("ok", answer)
		}
	}
}

// network sets up a device: rename OLD NEW, address DEV PREFIX MAC, neighbour DEV IP MAC.
func network(l netlink.Link, f []string) error {
	if f[0] == "rename" {
		return netlink.LinkSetName(l, f[2])
	}
	mac, err := net.ParseMAC(f[3])
	if err != nil {
		return err
	}
	if f[0] == "neighbour" {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP(f[2]), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	}
	addr, err := netlink.ParseAddr(f[2])
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetHardwareAddr(l, mac), netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
}

type run struct {
	stop chan struct{}
	done chan string
}

var (
	accepted = make(chan net.Conn, 64)
	running  = map[int]run{}
)

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			// Not io.Copy, which splices.
			buf := make([]byte, 32<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

var seed uint64

// pattern is n bytes that say where they belong.
func pattern(start uint64, n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], (start+uint64(i))*0x9E3779B97F4A7C15)
	}
	return b[:n]
}

// exchange sends pieces and checks that they come back, all of them, in order.
func exchange(c net.Conn, rounds, size int) error {
	for range rounds {
		seed += 1 << 20
		sent := pattern(seed, size)
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		failed := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			failed <- err
		}()
		got := make([]byte, size)
		if n, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("%d of %d bytes came back: %w", n, size, err)
		}
		if err := <-failed; err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return errors.New("other bytes came back")
		}
	}
	return nil
}
