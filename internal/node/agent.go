// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/kernel"
)

// Names in the pin root (bpffs allows no dots): the agent's instance, one that is being built, and those
// of builds with another layout that are on their way out.
const (
	agentPin  = "agent"
	freshPin  = "agent-new"
	oldPrefix = "agent-old-"
)

// Rescan is how often the agent looks for cgroups and namespaces that came or went.
const Rescan = time.Second

// drainPause lies between two looks at what is left.
const drainPause = 50 * time.Millisecond

// ErrAgentRuns says that another agent holds the pin root.
var ErrAgentRuns = errors.New("a shunt agent is running here")

// AgentOptions say where an agent works. The zero value is the machine's own.
type AgentOptions struct {
	CgroupRoot string                  // where the programs are attached: "" is the root of cgroup2
	PinRoot    string                  // on bpffs; "" is /sys/fs/bpf/shunt/accel
	Fault      func(step string) error `json:"-"` // see accel.Options
}

func (o AgentOptions) pinRoot() string {
	if o.PinRoot == "" {
		return sessionPin
	}
	return o.PinRoot
}

// Agent accelerates what a configuration selects, on the whole machine. Its
// instance is pinned: the data path goes on when the process ends, however it
// ends, and the next agent adopts it.
type Agent struct {
	opts   AgentOptions
	cgroup string
	mount  string // of cgroup2: selectors' paths count from here
	lock   *os.File
	start  time.Time

	mu       sync.Mutex
	cfg      *config.Config
	plane    *accel.Plane
	upgraded bool
	adopted  bool
	missing  []string
	scans    int
	lastErr  string // of the last reload, "" if it was taken
	stop     context.CancelFunc
	guards   chan struct{} // closed when the guards of plane are not served any more
}

// NewAgent loads the instance, or adopts the one that is there, and selects what
// cfg says.
func NewAgent(cfg *config.Config, opts AgentOptions) (_ *Agent, err error) {
	if missing := kernel.MissingCapabilities(); len(missing) > 0 {
		return nil, fmt.Errorf("missing %s: run as root, or as deploy/shunt.service does", strings.Join(missing, ", "))
	}
	a := &Agent{opts: opts, cgroup: opts.CgroupRoot, start: time.Now()}
	if a.mount, err = kernel.Cgroup2(); err != nil {
		return nil, err
	}
	if a.cgroup == "" {
		a.cgroup = a.mount
	}
	if err := kernel.EnsureBPFFS(bpffs); err != nil {
		return nil, err
	}
	if err := kernel.RemoveMemlock(); err != nil {
		return nil, err
	}
	if a.lock, err = lockPins(opts.pinRoot()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	accelOpts, err := a.accelOptions(cfg)
	if err != nil {
		return nil, err
	}
	sel, missing := resolve(cfg.Accel, a.mount)
	if err := sel.Check(); err != nil {
		return nil, err
	}
	if err := a.take(accelOpts); err != nil {
		return nil, err
	}
	if err := a.plane.AskGuardsAgain(); err != nil {
		return nil, err
	}
	if !accelOpts.AcceptG6 {
		if err := a.plane.GuardLoopback(); err != nil {
			return nil, err
		}
	}
	if err := a.plane.Select(sel, accelOpts); err != nil {
		return nil, err
	}
	a.cfg = cfg
	a.nowMissing(missing)
	for _, old := range oldInstances(opts.pinRoot()) {
		if err := accel.StopSelecting(old); err != nil {
			return nil, err
		}
	}
	a.serveGuards()
	return a, nil
}

func (a *Agent) accelOptions(cfg *config.Config) (accel.Options, error) {
	o, err := accelOptions(cfg.Accel)
	o.Fault = a.opts.Fault
	return o, err
}

// lockPins makes the pin root and locks it for this process's life.
func lockPins(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	if err := accel.Private(root); err != nil {
		return nil, err
	}
	f, err := lock(root, unix.LOCK_EX)
	// Who looks whether it is locked holds it for a moment.
	for try := 0; errors.Is(err, unix.EWOULDBLOCK) && try < 10; try++ {
		time.Sleep(20 * time.Millisecond)
		f, err = lock(root, unix.LOCK_EX)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s is locked: %w", root, ErrAgentRuns)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return f, nil
}

// take gets hold of an instance with these options: the one that is there, under
// traffic, else a new one. Whatever step it fails or dies at, the next take
// starts from a state that this one knows.
func (a *Agent) take(opts accel.Options) error {
	root := a.opts.pinRoot()
	dir, fresh := filepath.Join(root, agentPin), filepath.Join(root, freshPin)
	// It never got so far that anything was selected.
	if err := accel.Remove(fresh); err != nil {
		return err
	}
	if _, err := os.Stat(dir); err == nil && !accel.Complete(dir) {
		// Someone died while removing it.
		if err := accel.Remove(dir); err != nil {
			return err
		}
	}
	if _, err := os.Stat(dir); err == nil {
		same, err := a.attachedHere(dir)
		if err != nil {
			return err
		}
		if same {
			a.plane, a.upgraded, err = accel.Adopt(dir, opts)
			if err == nil {
				a.adopted = true
				return nil
			}
		} else {
			err = errors.New("it is attached to another cgroup")
		}
		if same && !errors.Is(err, accel.ErrLayout) {
			return err
		}
		slog.Warn("the instance that is loaded cannot be taken over: it keeps its connections until they end, new ones join a new instance", "err", err)
		if err := opts.Step("set the old instance aside"); err != nil {
			return err
		}
		if err := accel.Rename(dir, filepath.Join(root, oldPrefix+strconv.FormatInt(time.Now().UnixNano(), 36))); err != nil {
			return err
		}
	}
	plane, err := accel.Load(fresh, a.cgroup, opts)
	if err != nil {
		return err
	}
	a.plane = plane
	if err := opts.Step("move the new instance into place"); err != nil {
		return errors.Join(err, accel.Remove(fresh))
	}
	if err := accel.Rename(fresh, dir); err != nil {
		return errors.Join(err, accel.Remove(fresh))
	}
	plane.MovedTo(dir)
	return nil
}

func (a *Agent) attachedHere(dir string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(a.cgroup, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", a.cgroup, err)
	}
	id, err := accel.CgroupID(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return id == st.Ino, err
}

func oldInstances(root string) []string {
	old, err := filepath.Glob(filepath.Join(root, oldPrefix+"*"))
	if err != nil { // only of a bad pattern
		return nil
	}
	return old
}

// serveGuards answers the kernel half's questions for the plane of now.
func (a *Agent) serveGuards() {
	ctx, stop := context.WithCancel(context.Background())
	done, plane := make(chan struct{}), a.plane
	a.stop, a.guards = stop, done
	go func() {
		defer close(done)
		if err := plane.Serve(ctx, findAnyNetns); err != nil {
			slog.Error("new devices get no reset guard: connections through them stay on the stack", "err", err)
		}
	}()
}

func (a *Agent) endGuards() {
	if a.stop != nil {
		a.stop()
		<-a.guards
		a.stop = nil
	}
}

// Close ends this process's part. The data path stays.
func (a *Agent) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endGuards()
	if a.plane != nil {
		a.plane.Close()
		a.plane = nil
	}
	a.lock.Close() //nolint:errcheck // a directory
}

// Run keeps the selection up to date and takes old instances out, until ctx ends.
// alive is called as long as that works.
func (a *Agent) Run(ctx context.Context, alive func()) {
	tick := time.NewTicker(Rescan)
	defer tick.Stop()
	for {
		a.rescan()
		if alive != nil {
			alive()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *Agent) rescan() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plane == nil {
		return
	}
	sel, missing := resolve(a.cfg.Accel, a.mount)
	a.nowMissing(missing)
	if err := a.plane.Recheck(sel); err != nil {
		slog.Error("cgroups that came are not selected", "err", err)
	}
	if a.scans++; a.scans%60 == 0 { // a minute: namespaces come and go
		if err := a.plane.ForgetDeadGuards(); err != nil {
			slog.Warn("guards of devices that are gone stay", "err", err)
		}
	}
	for _, old := range oldInstances(a.opts.pinRoot()) {
		if _, err := drainOnce(old, a.opts.Fault); err != nil {
			slog.Error("an old instance stays", "pins", old, "err", err)
		}
	}
}

// Plan says what applying cfg would change.
func (a *Agent) Plan(cfg *config.Config) []config.Change {
	a.mu.Lock()
	defer a.mu.Unlock()
	return config.Diff(a.cfg, cfg)
}

// Apply makes cfg what the agent does, all of it or nothing. Connections that
// are established stay as they are.
func (a *Agent) Apply(cfg *config.Config) ([]config.Change, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plane == nil {
		return nil, errors.New("the agent is stopping")
	}
	changes := config.Diff(a.cfg, cfg)
	err := a.apply(cfg)
	a.lastErr = ""
	if err != nil {
		a.lastErr = err.Error()
		return nil, err
	}
	return changes, nil
}

func (a *Agent) apply(cfg *config.Config) error {
	was, err := a.accelOptions(a.cfg)
	if err != nil {
		return err
	}
	opts, err := a.accelOptions(cfg)
	if err != nil {
		return err
	}
	sel, missing := resolve(cfg.Accel, a.mount)
	if err := sel.Check(); err != nil {
		return err
	}
	rebuilt := !sameOptions(was, opts)
	if rebuilt {
		// Options are constants in the programs: the same way as an upgrade.
		if err := a.rebuild(opts); err != nil {
			return errors.Join(err, a.rebuild(was))
		}
	}
	if err := a.plane.Select(sel, opts); err != nil {
		if rebuilt {
			err = errors.Join(err, a.rebuild(was))
		}
		return err
	}
	a.cfg = cfg
	a.nowMissing(missing)
	return nil
}

// nowMissing says once what selectors name in vain: it may be a typing error.
func (a *Agent) nowMissing(names []string) {
	if len(names) > 0 && !slices.Equal(names, a.missing) {
		slog.Warn("selectors name what does not exist now", "names", names)
	}
	a.missing = names
}

func sameOptions(a, b accel.Options) bool {
	a.Fault, b.Fault = nil, nil
	return reflect.DeepEqual(a, b)
}

func (a *Agent) rebuild(opts accel.Options) error {
	plane, _, err := accel.Adopt(filepath.Join(a.opts.pinRoot(), agentPin), opts)
	if err != nil {
		return err
	}
	a.endGuards()
	plane.Inherit(a.plane)
	a.plane.Close()
	a.plane = plane
	a.serveGuards()
	return nil
}

// Refused notes a reload whose file was not even read to the end.
func (a *Agent) Refused(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastErr = err.Error()
}

// Config is what is in force.
func (a *Agent) Config() *config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// AgentStatus is what an agent says about itself.
type AgentStatus struct {
	PID       int         `json:"pid" yaml:"pid"`
	Started   time.Time   `json:"started" yaml:"started"`
	Cgroup    string      `json:"cgroup" yaml:"cgroup"`
	Pins      string      `json:"pins" yaml:"pins"`
	Adopted   bool        `json:"adopted" yaml:"adopted"`                          // the instance was there before this process
	Upgraded  bool        `json:"upgraded" yaml:"upgraded"`                        // and its programs were replaced
	Draining  int         `json:"draining" yaml:"draining"`                        // old instances on their way out
	Missing   []string    `json:"missing,omitempty" yaml:"missing,omitempty"`      // names in selectors that stand for nothing now
	LastError string      `json:"last_error,omitempty" yaml:"lastError,omitempty"` // of the last reload; the configuration before it is in force
	Mapped    int         `json:"mapped" yaml:"mapped"`
	Stats     accel.Stats `json:"stats" yaml:"stats"`
}

// Status reads the agent's state and its instance's totals.
func (a *Agent) Status() (AgentStatus, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.plane == nil {
		return AgentStatus{}, errors.New("the agent is stopping")
	}
	s := AgentStatus{
		PID: os.Getpid(), Started: a.start, Cgroup: a.cgroup, Pins: a.plane.Dir(),
		Adopted: a.adopted, Upgraded: a.upgraded,
		Draining: len(oldInstances(a.opts.pinRoot())), Missing: a.missing, LastError: a.lastErr,
	}
	var err error
	if s.Mapped, err = a.plane.Mapped(); err != nil {
		return s, err
	}
	s.Stats, err = a.plane.Stats()
	return s, err
}

// findAnyNetns finds a network namespace by its cookie among those with a name
// and those of all processes.
func findAnyNetns(cookie uint64) (string, error) {
	if own, err := kernel.NetnsCookie(); err == nil && own == cookie {
		return accel.OwnNetns, nil
	}
	named, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return "", err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return "", err
	}
	type file struct{ dev, ino uint64 }
	seen := map[file]bool{}
	for _, path := range append(named, processes...) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || seen[file{st.Dev, st.Ino}] {
			continue
		}
		seen[file{st.Dev, st.Ino}] = true
		if c, err := netnsCookie(path); err == nil && c == cookie {
			return path, nil
		}
	}
	return "", fmt.Errorf("no process and no name has the namespace with cookie %d", cookie)
}
