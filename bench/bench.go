// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/kernel"
)

// Modes: the socket paths compared.
const (
	ModePlain = "plain" // TCP, nothing attached
	ModeAccel = "accel" // TCP, accelerated through [Options.Accel]
	ModeUnix  = "unix"  // unix stream socket
	ModeNaive = "naive" // TCP through [AttachNaive]
)

// Places: where client and server are.
const (
	PlaceLoopback = "loopback"
	PlaceVeth     = "veth" // two namespaces joined by a veth pair
)

// CPU layouts.
const (
	CPUsOne = "one" // client and server share a CPU
	CPUsTwo = "two" // one CPU each
)

// Accelerated is a running acceleration of one cgroup.
type Accelerated interface {
	Dir() string // the cgroup2 directory to start processes in
	Close() error
}

// Options selects what is measured.
type Options struct {
	Modes    []string
	Places   []string
	CPUs     []string
	RR       []int         // message sizes of request/response, bytes
	Streams  []int         // write sizes of one-way streams, bytes
	Bidir    []int         // write sizes of streams in both directions at once, bytes
	Many     []int         // message sizes of request/response over 64 connections, bytes
	Setup    []int         // message sizes, one each way, of connections that are made and closed, bytes
	Remote   []int         // message sizes of request/response with a server that is not accelerated, bytes
	Cells    string        // measure only cells with this in their name, as in the report
	Rounds   int           // samples of each mode in each cell
	Duration time.Duration // window of a sample
	Warmup   time.Duration // before each window
	Blocking bool          // blocking calls instead of epoll

	Accel    func() (Accelerated, error) // called once for every accelerated sample
	Progress func(Progress)              // called before every sample; may be nil
}

// Progress says which sample comes next.
type Progress struct {
	Done, Total int
	Next        string
}

// DefaultOptions measures everything; it takes about six minutes.
func DefaultOptions() Options {
	return Options{
		Modes:    []string{ModePlain, ModeAccel, ModeUnix, ModeNaive},
		Places:   []string{PlaceLoopback, PlaceVeth},
		CPUs:     []string{CPUsOne, CPUsTwo},
		RR:       []int{64, 1024, 4096, 16384},
		Streams:  []int{256, 4096, 16384, 65536, 262144},
		Rounds:   5,
		Duration: 400 * time.Millisecond,
		Warmup:   50 * time.Millisecond,
	}
}

// GoalOptions are the cells that shunt's goals speak of; it takes about a quarter of an hour.
func GoalOptions() Options {
	o := DefaultOptions()
	o.Modes = []string{ModePlain, ModeAccel}
	sizes := []int{64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}
	o.RR, o.Streams, o.Bidir, o.Many = sizes, sizes, sizes, sizes
	o.Setup, o.Remote = []int{64}, []int{64}
	return o
}

// workloads with their sizes, in the order of the report.
func (o *Options) workloads() []workloadSizes {
	return []workloadSizes{
		{WorkloadRR, o.RR}, {WorkloadStream, o.Streams}, {WorkloadBidir, o.Bidir},
		{WorkloadMany, o.Many}, {WorkloadSetup, o.Setup}, {WorkloadRemote, o.Remote},
	}
}

type workloadSizes struct {
	name  string
	sizes []int
}

// cells of a place that are to be measured.
func (o *Options) cells(place string) (cells []Cell) {
	for _, layout := range o.CPUs {
		for _, w := range o.workloads() {
			for _, size := range w.sizes {
				c := Cell{Place: place, CPUs: layout, Workload: w.name, Size: size}
				if strings.Contains(c.String(), o.Cells) {
					cells = append(cells, c)
				}
			}
		}
	}
	return cells
}

// peerTimeout bounds every wait of a peer, and how long a sample may overrun.
const peerTimeout = 5 * time.Second

// Check refuses options that name something unknown or measure nothing.
func (o *Options) Check() error {
	lists := []struct {
		what    string
		have    []string
		allowed []string
	}{
		{"mode", o.Modes, []string{ModePlain, ModeAccel, ModeUnix, ModeNaive}},
		{"place", o.Places, []string{PlaceLoopback, PlaceVeth}},
		{"CPU layout", o.CPUs, []string{CPUsOne, CPUsTwo}},
	}
	for _, l := range lists {
		if len(l.have) == 0 {
			return fmt.Errorf("no %s given: want some of %s", l.what, strings.Join(l.allowed, ","))
		}
		for _, name := range l.have {
			if !slices.Contains(l.allowed, name) {
				return fmt.Errorf("no %s %q: want some of %s", l.what, name, strings.Join(l.allowed, ","))
			}
		}
	}
	for _, w := range o.workloads() {
		for _, size := range w.sizes {
			if size < minSize || size > 16<<20 {
				return fmt.Errorf("size %d: want %d to %d bytes", size, minSize, 16<<20)
			}
		}
	}
	total := 0
	for _, place := range o.Places {
		total += len(o.cells(place))
	}
	if total == 0 {
		return errors.New("no sizes given, or no cell is called so")
	}
	if o.Blocking && len(o.Bidir)+len(o.Many)+len(o.Setup) > 0 {
		return fmt.Errorf("blocking calls: only %s, %s and %s can do with them", WorkloadRR, WorkloadStream, WorkloadRemote)
	}
	if o.Rounds < 1 {
		return fmt.Errorf("%d rounds: want at least 1", o.Rounds)
	}
	if o.Duration <= 0 || o.Warmup < 0 {
		return fmt.Errorf("a window of %v after %v: want a positive time", o.Duration, o.Warmup)
	}
	if slices.Contains(o.Modes, ModeAccel) && o.Accel == nil {
		return errors.New("nothing given that accelerates")
	}
	return nil
}

// Run measures every cell and returns the report; needs root. A path that fails
// in a sample, as the naive control may, is reported in that sample; what cannot
// be set up is an error.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if missing := kernel.MissingCapabilities(); len(missing) > 0 {
		return nil, fmt.Errorf("missing %s: run as root", strings.Join(missing, ", "))
	}
	cpus, err := allowedCPUs()
	if err != nil {
		return nil, err
	}
	if len(cpus) < 2 && slices.Contains(o.CPUs, CPUsTwo) {
		if o.CPUs = slices.DeleteFunc(slices.Clone(o.CPUs), func(c string) bool { return c == CPUsTwo }); len(o.CPUs) == 0 {
			return nil, errors.New("two CPUs asked for, but this process may run on one only")
		}
	}
	own, err := kernel.OwnCgroup2()
	if err != nil {
		return nil, fmt.Errorf("find the cgroup to work in: %w", err)
	}
	r := runner{Options: o, cpus: cpus}
	if r.groups, err = newCgroups(own); err != nil {
		return nil, err
	}
	if err := removeLeft(os.TempDir(), os.RemoveAll); err != nil {
		return nil, err
	}
	if r.tmp, err = os.MkdirTemp("", fmt.Sprintf("%s%d-*", leftPrefix, os.Getpid())); err != nil {
		return nil, fmt.Errorf("make a directory for unix sockets: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.tmp)) }()

	// The peers die with the thread that started them (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	report := newReport(o, cpus)
	for _, name := range o.Places {
		cells, err := r.place(ctx, name)
		if err != nil {
			return nil, err
		}
		report.Cells = append(report.Cells, cells...)
	}
	return report, nil
}

type runner struct {
	Options
	cpus   []int
	groups *cgroups
	tmp    string
	done   int
}

func (r *runner) place(ctx context.Context, name string) (_ []Cell, err error) {
	at, err := openPlace(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, at.close()) }()
	cells := r.cells(name)
	for i := range cells {
		if err := r.cell(ctx, at, &cells[i]); err != nil {
			return nil, err
		}
	}
	return cells, nil
}

func (r *runner) cell(ctx context.Context, at *place, c *Cell) error {
	for _, mode := range r.Modes {
		c.Paths = append(c.Paths, Path{Mode: mode})
	}
	for range r.Rounds {
		for i := range c.Paths {
			path := &c.Paths[i]
			if r.Progress != nil {
				total := 0
				for _, place := range r.Places {
					total += len(r.cells(place))
				}
				r.Progress(Progress{r.done, total * r.Rounds * len(r.Modes), c.String() + " " + path.Mode})
			}
			s, err := r.sample(ctx, at, c, path.Mode)
			if err != nil {
				return fmt.Errorf("%v, %s: %w", c, path.Mode, err)
			}
			path.Samples = append(path.Samples, s)
			r.done++
		}
	}
	c.summarize()
	return nil
}

// sample sets the path up, measures it once and takes it down again, so that
// the next path finds a kernel without our programs.
func (r *runner) sample(ctx context.Context, at *place, c *Cell, mode string) (_ Sample, err error) {
	dir, down, err := r.setUp(mode)
	if err != nil {
		return Sample{}, err
	}
	defer func() { err = errors.Join(err, down()) }()

	result, err := r.measure(ctx, at, c, mode, dir)
	if ctx.Err() != nil {
		return Sample{}, context.Cause(ctx)
	}
	if err != nil {
		return Sample{Error: err.Error()}, nil
	}
	return Sample{Rate: result.Rate, Verified: result.Verified}, nil
}

// setUp returns the cgroup of one sample and what takes it down.
func (r *runner) setUp(mode string) (dir string, down func() error, err error) {
	if mode == ModeAccel {
		session, err := r.Accel()
		if err != nil {
			return "", nil, fmt.Errorf("accelerate: %w", err)
		}
		return session.Dir(), session.Close, nil
	}
	if dir, err = r.groups.make(); err != nil {
		return "", nil, err
	}
	down = func() error { return removeCgroup(dir) }
	if mode == ModeNaive {
		control, err := AttachNaive(dir)
		if err != nil {
			return "", nil, errors.Join(err, down())
		}
		down = func() error { return errors.Join(control.Close(), removeCgroup(dir)) }
	}
	return dir, down, nil
}

func (r *runner) measure(ctx context.Context, at *place, c *Cell, mode, dir string) (_ *PeerResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.Warmup+r.Duration+3*peerTimeout)
	defer cancel()
	group, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open a cgroup: %w", err)
	}
	defer group.Close()

	addr := at.listen
	if mode == ModeUnix {
		path := filepath.Join(r.tmp, "s"+strconv.Itoa(r.done))
		defer os.Remove(path)
		addr = "unix:" + path
	}
	serverCPU, clientCPU := r.cpus[0], r.cpus[0]
	if c.CPUs == CPUsTwo {
		serverCPU = r.cpus[1]
	}

	serverGroup := group
	if c.Workload == WorkloadRemote {
		other, makeErr := r.groups.make()
		if makeErr != nil {
			return nil, makeErr
		}
		defer func() { err = errors.Join(err, removeCgroup(other)) }()
		if serverGroup, err = os.Open(other); err != nil {
			return nil, fmt.Errorf("open a cgroup: %w", err)
		}
		defer serverGroup.Close()
	}
	server, err := r.start(ctx, c, "server", serverGroup, at.server, serverCPU, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = server.stop() }()
	var hello peerHello
	if err := server.read(&hello); err != nil {
		return nil, err
	}
	client, err := r.start(ctx, c, "client", group, at.client, clientCPU, hello.Listening)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.stop() }()
	var result PeerResult
	readErr := client.read(&result)
	if err := errors.Join(readErr, client.wait()); err != nil {
		// What went wrong at the server is often the cause.
		return nil, errors.Join(err, server.stop())
	}
	if err := server.wait(); err != nil {
		return nil, err
	}
	if result.Verified == 0 {
		return nil, errors.New("no byte was verified")
	}
	return &result, nil
}

// child is a running peer.
type child struct {
	role   string
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr strings.Builder
	waited bool
}

func (r *runner) start(ctx context.Context, c *Cell, role string, group, ns *os.File, cpu int, addr string) (*child, error) {
	workload := c.Workload
	if workload == WorkloadRemote { // what differs is only where the server is
		workload = WorkloadRR
	}
	args := []string{
		PeerCommand, role, "--address", addr, "--workload", workload, "--size", strconv.Itoa(c.Size),
		"--warmup", r.Warmup.String(), "--duration", r.Duration.String(), "--timeout", peerTimeout.String(),
		"--cpus", strconv.Itoa(cpu), "--blocking=" + strconv.FormatBool(r.Blocking),
	}
	if ns != nil {
		args = append(args, "--netns", "/proc/self/fd/3")
	}
	p := &child{role: role, cmd: exec.CommandContext(ctx, "/proc/self/exe", args...)}
	if ns != nil {
		p.cmd.ExtraFiles = []*os.File{ns}
	}
	// One running goroutine, and no signals from the runtime: some paths answer a signal with EAGAIN.
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:   unix.SIGKILL,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	p.out = bufio.NewReader(stdout)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	return p, nil
}

// read takes one JSON line; no line is no error of its own if the peer says why in wait.
func (p *child) read(v any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		if err := p.wait(); err != nil {
			return err
		}
		return fmt.Errorf("%s: no result: %w", p.role, err)
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("%s: %w", p.role, err)
	}
	return nil
}

// wait reports how the peer ended, once; later calls return nil.
func (p *child) wait() error {
	if p.waited {
		return nil
	}
	p.waited = true
	if err := p.cmd.Wait(); err != nil {
		if said := strings.TrimSpace(p.stderr.String()); said != "" {
			return fmt.Errorf("%s: %s", p.role, said)
		}
		return fmt.Errorf("%s: %w", p.role, err)
	}
	return nil
}

// stop ends a peer that may still run, and returns what it had to say by itself.
func (p *child) stop() error {
	if p.waited {
		return nil
	}
	kill := time.AfterFunc(200*time.Millisecond, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.wait(); p.stderr.Len() > 0 {
		return err
	}
	return nil
}

// allowedCPUs lists the CPUs this process may run on, in ascending order.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read the CPU affinity: %w", err)
	}
	var cpus []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
