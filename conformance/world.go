// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/bench"
	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
)

// Session accelerates the processes of its cgroup.
type Session interface {
	CgroupFD() int
	Stats() (accel.Stats, error)
	Close() error
}

// The worlds a case runs in. Each has network namespaces of its own.
const (
	plainLoopback = "plain TCP, loopback"
	plainVeth     = "plain TCP, veth"
	// PlaceLoopback and PlaceVeth are where accelerated connections are: within
	// one network namespace, or between two.
	PlaceLoopback = "loopback"
	PlaceVeth     = "veth"
	// PlaceControl is loopback with everything redirected, without a guard.
	PlaceControl = "control"
)

// world is one worker process, and what surrounds it.
type world struct {
	name    string
	config  workerConfig
	limit   time.Duration // of one case
	cgroup  int           // -1: our own
	session Session
	open    func() (Session, error)
	stopped bool // the session is closed, its last figures are
	last    accel.Stats
	client  *os.File // network namespaces
	server  *os.File
	closers []func() error

	worker  *exec.Cmd
	orders  io.WriteCloser
	answers chan answer
	stderr  *tail
}

// tail keeps the end of what a worker says on stderr.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - 8<<10; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

func openWorld(ctx context.Context, name string, session func() (Session, error)) (_ *world, err error) {
	w := &world{name: name, cgroup: -1, limit: 30 * time.Second}
	w.config = workerConfig{
		V4: netip.MustParseAddr("127.0.0.1"), V6: netip.MustParseAddr("::1"),
		Patience: 10 * time.Second, Quiet: 50 * time.Millisecond,
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", name, err), w.close())
		}
	}()
	if w.config.Outside, err = kernel.OwnCgroup2(); err != nil {
		return nil, err
	}
	if err := w.openNetns(name == PlaceVeth || name == plainVeth); err != nil {
		return nil, err
	}
	switch name {
	case PlaceLoopback, PlaceVeth:
		if w.session, err = session(); err != nil {
			return nil, err
		}
		w.open = session
		w.closers = append(w.closers, func() error {
			if w.stopped {
				return nil
			}
			return w.session.Close()
		})
		w.cgroup = w.session.CgroupFD()
	case PlaceControl:
		if err := w.attachControl(); err != nil {
			return nil, err
		}
		// It hangs where the others answer: that need not take long.
		w.config.Patience, w.limit = 1500*time.Millisecond, 5*time.Second
	}
	if w.server != nil {
		if err := w.holdServer(); err != nil {
			return nil, err
		}
	}
	return w, w.warm(ctx)
}

// cgroupPrefix and the process id start the name of the control's cgroup.
const cgroupPrefix = "shunt-conformance-"

func (w *world) attachControl() error {
	own, err := kernel.OwnCgroup2()
	if err != nil {
		return err
	}
	// What a killed run left: busy, or another user's, it stays for the next one.
	left, err := filepath.Glob(filepath.Join(own, cgroupPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for what earlier runs left: %w", err)
	}
	for _, dir := range left {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), "-")
		if pid, err := strconv.Atoi(owner); err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			os.Remove(dir) //nolint:errcheck // as above
		}
	}
	dir, err := os.MkdirTemp(own, fmt.Sprintf("%s%d-", cgroupPrefix, os.Getpid()))
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	w.closers = append(w.closers, func() error {
		var err error
		for range 100 { // what ran there may be on its way out
			if err = os.Remove(dir); err == nil || !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		return err
	})
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the cgroup: %w", err)
	}
	w.closers = append(w.closers, f.Close)
	w.cgroup = int(f.Fd())
	naive, err := bench.AttachNaive(dir)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, naive.Close)
	return nil
}

// openNetns makes the world's network namespaces. They exist only through
// descriptors and processes: however this process ends, they go with it.
func (w *world) openNetns(two bool) error {
	var err error
	if w.client, err = w.newNetns(); err != nil {
		return err
	}
	if !two {
		return nil
	}
	if w.server, err = w.newNetns(); err != nil {
		return err
	}
	// Across exec: a worker finds it as its descriptor 3.
	w.config.ServerNetns = "/proc/self/fd/3"
	w.config.V4, w.config.V6 = netip.MustParseAddr("10.77.200.2"), netip.MustParseAddr("fd77:c8::2")
	in, err := netlink.NewHandleAt(netns.NsHandle(w.client.Fd()))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer in.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "veth0"})
	veth.PeerName = "veth0"
	veth.PeerNamespace = netlink.NsFd(int(w.server.Fd()))
	if err := in.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	for ns, addrs := range map[*os.File][]string{
		w.client: {"10.77.200.1/24", "fd77:c8::1/64"},
		w.server: {"10.77.200.2/24", "fd77:c8::2/64"},
	} {
		if err := up(ns, "veth0", addrs...); err != nil {
			return err
		}
	}
	return nil
}

// newNetns makes a namespace on a thread that is thrown away with its goroutine.
func (w *world) newNetns() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be reused
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("unshare the network: %w", err)}
			return
		}
		// Data in the SYN without a cookie, in both directions: see tcp(7).
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("519"), 0); err != nil {
			made <- result{err: fmt.Errorf("switch TCP Fast Open on: %w", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		made <- result{file, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	w.closers = append(w.closers, r.file.Close)
	return r.file, up(r.file, "lo")
}

func up(ns *os.File, name string, addrs ...string) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD,
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// command starts a process of the suite in the world.
func (w *world) command(ns *os.File, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{PeerCommand}, args...)...)
	// The Go runtime's own signals would show in blocking calls.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if w.cgroup >= 0 {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, w.cgroup
	}
	if w.server != nil {
		cmd.ExtraFiles = []*os.File{w.server}
	}
	return cmd
}

// start a command in a namespace: a child is born in that of the thread that makes it.
func start(cmd *exec.Cmd, ns *os.File) error {
	return kernel.InNetns(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), cmd.Start)
}

// holdServer keeps a process in the server's namespace: the node looks for the
// namespaces of a session among those of its processes.
func (w *world) holdServer() error {
	cmd := w.command(w.server, "wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	if err := start(cmd, w.server); err != nil {
		return fmt.Errorf("start a process in the server's namespace: %w", err)
	}
	w.closers = append(w.closers, func() error { return errors.Join(in.Close(), cmd.Wait()) })
	return nil
}

func (w *world) startWorker() error {
	config, err := json.Marshal(w.config)
	if err != nil {
		return err
	}
	cmd := w.command(w.client, "worker", string(config))
	w.stderr = &tail{}
	cmd.Stderr = w.stderr
	orders, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	if err := start(cmd, w.client); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	w.worker, w.orders = cmd, orders
	answers := make(chan answer, 64)
	w.answers = answers
	go func() {
		defer close(answers)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var a answer
			if json.Unmarshal(lines.Bytes(), &a) == nil {
				answers <- a
			}
		}
	}()
	return nil
}

func (w *world) killWorker() {
	if w.worker == nil {
		return
	}
	w.worker.Process.Kill() //nolint:errcheck // it may have ended
	for range w.answers {   // until the pipe ends
	}
	w.worker.Wait()  //nolint:errcheck // killed
	w.orders.Close() //nolint:errcheck // as above
	w.worker = nil
}

// run carries out one case. The error is the suite's own.
func (w *world) run(ctx context.Context, o order) (Observation, error) {
	if w.worker == nil {
		if err := w.startWorker(); err != nil {
			return nil, err
		}
	}
	if err := json.NewEncoder(w.orders).Encode(o); err != nil {
		w.killWorker()
		return Observation{broken + err.Error() + " " + w.stderr.String()}, nil
	}
	var got Observation
	limit := time.NewTimer(w.limit)
	defer limit.Stop()
	for {
		select {
		case a, ok := <-w.answers:
			switch {
			case !ok:
				w.killWorker()
				return append(got, "the process died: "+w.stderr.String()), nil
			case a.Done:
				return got, nil
			case a.StopAgent:
				if err := w.stopAgent(); err != nil {
					return nil, err
				}
			default:
				got = append(got, a.Say)
			}
		case <-limit.C:
			w.killWorker()
			return append(got, hang), nil
		case <-ctx.Done():
			w.killWorker()
			return nil, context.Cause(ctx)
		}
	}
}

// warm uses connections until the world carries them the short way: a device is
// guarded only once someone asks for it.
func (w *world) warm(ctx context.Context) error {
	for deadline := time.Now().Add(15 * time.Second); ; {
		before, err := w.stats()
		if err != nil {
			return err
		}
		got, err := w.run(ctx, order{Case: warmUp.Name, Mode: Level})
		if err != nil {
			return err
		}
		if len(got) > 0 {
			return fmt.Errorf("the first connection: %v", got)
		}
		after, err := w.stats()
		if err != nil {
			return err
		}
		// Some in each direction; the first of them have to take the stack.
		if w.session == nil || after.Redirected.Messages-before.Redirected.Messages > warmUpPings {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing takes the short path: %+v", after)
		}
	}
}

// stopAgent closes the session under its users: what is in the kernel stays, as
// when the process of the session dies.
func (w *world) stopAgent() error {
	if w.session != nil && !w.stopped {
		var err error
		if w.last, err = w.session.Stats(); err != nil {
			return err
		}
		w.stopped = true
		// The error says that it is in use, as it is.
		if err := w.session.Close(); err == nil {
			return errors.New("the session went, with sockets in use")
		}
		// A session cleans up after those that died: the last thing to be done here.
		w.closers = slices.Insert(w.closers, 0, func() error {
			s, err := w.open()
			if err != nil {
				return err
			}
			return s.Close()
		})
	}
	if _, err := fmt.Fprintln(w.orders, "{}"); err != nil {
		return fmt.Errorf("tell the worker that the agent is gone: %w", err)
	}
	return nil
}

func (w *world) stats() (accel.Stats, error) {
	switch {
	case w.session == nil:
		return accel.Stats{}, nil
	case w.stopped: // until then
		return w.last, nil
	}
	return w.session.Stats()
}

// close takes the world down, in reverse.
func (w *world) close() error {
	w.killWorker()
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}
