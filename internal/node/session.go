// SPDX-License-Identifier: Apache-2.0

// Package node puts the planes together on one machine.
package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
)

const (
	bpffs      = "/sys/fs/bpf"
	sessionPin = bpffs + "/shunt/accel"
	// A session's cgroup and its pin directory share one name with this prefix.
	sessionPrefix = "shunt-run-"
	// How long Close waits for the last processes to end.
	endGrace = 500 * time.Millisecond
)

// SessionOptions of a temporary acceleration.
type SessionOptions struct {
	Accept   []string // guarantees to go without, as Guarantee takes them
	MaxQueue uint32   // bytes queued at one receiver before it spills; 0 is the default
}

// Session accelerates what runs in one cgroup of its own, until Close. Its
// state is pinned: if this process is killed, its traffic goes on, and the next
// session removes what is left once nothing runs there.
type Session struct {
	name   string
	cgroup *os.File // locked while this process lives
	plane  *accel.Plane
	stop   context.CancelFunc
	guards chan error
}

// ErrBusy is returned by Close when processes or sockets still use the session.
var ErrBusy = errors.New("still in use")

// NewSession makes a cgroup below the caller's own and accelerates it.
func NewSession(opts SessionOptions) (_ *Session, err error) {
	if missing := kernel.MissingCapabilities(); len(missing) > 0 {
		return nil, fmt.Errorf("missing %s: run as root, or give the binary these capabilities", strings.Join(missing, ", "))
	}
	accelOpts, err := acceptance(opts)
	if err != nil {
		return nil, err
	}
	own, err := kernel.OwnCgroup2()
	if err != nil {
		return nil, err
	}
	if err := unix.Access(own, unix.W_OK); err != nil {
		return nil, fmt.Errorf("cannot write to cgroup %s: run as root, or delegate it to this user: %w", own, err)
	}
	if err := kernel.EnsureBPFFS(bpffs); err != nil {
		return nil, err
	}
	if err := kernel.RemoveMemlock(); err != nil {
		return nil, err
	}
	if err := CleanUp(); err != nil {
		slog.Warn("what a killed run left could not be removed", "err", err)
	}

	s := &Session{guards: make(chan error, 1)}
	if s.cgroup, err = makeCgroup(own); err != nil {
		return nil, err
	}
	s.name = filepath.Base(s.cgroup.Name())
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(s.cgroup.Name()))
			s.cgroup.Close() //nolint:errcheck // a directory
		}
	}()
	if s.plane, err = accel.Load(filepath.Join(sessionPin, s.name), s.cgroup.Name(), accelOpts); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.plane.Close()
			err = errors.Join(err, accel.Remove(s.plane.Dir()))
		}
	}()
	if !accelOpts.AcceptG6 {
		// Nothing runs in the cgroup yet; loopback is where most connections are.
		if err := s.plane.GuardLoopback(); err != nil {
			return nil, err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.guards <- s.plane.Serve(ctx, s.findNetns) }()
	return s, nil
}

func acceptance(opts SessionOptions) (accel.Options, error) {
	o := accel.Options{MaxQueue: opts.MaxQueue}
	for _, name := range opts.Accept {
		g, err := Guarantee(name)
		if err != nil {
			return o, err
		}
		switch g {
		case "G4":
			o.AcceptG4 = true
		case "G5":
			o.AcceptG5 = true
		case "G6":
			o.AcceptG6 = true
		}
	}
	return o, nil
}

// makeCgroup makes a cgroup below parent and locks it. The lock says that its
// maker lives; the kernel drops it when the maker dies, however it dies.
func makeCgroup(parent string) (*os.File, error) {
	for try := 0; ; try++ {
		dir, err := os.MkdirTemp(parent, sessionPrefix)
		if err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		f, err := lock(dir, unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		// A cleaner saw it before it was locked, and took it; or someone looks at it.
		os.Remove(dir) //nolint:errcheck // it may be gone
		if try == 3 {
			return nil, fmt.Errorf("lock cgroup %s: %w", dir, err)
		}
	}
}

// lock takes a lock of that kind (LOCK_EX to own or to clean up, LOCK_SH to look
// whether someone does) or fails at once.
func lock(dir string, kind int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), kind|unix.LOCK_NB); err != nil {
		f.Close() //nolint:errcheck // a directory
		return nil, err
	}
	// A cleaner may have removed it between the open and the lock.
	opened, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Stat(dir); err == nil && !os.SameFile(opened, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close() //nolint:errcheck // a directory
		return nil, err
	}
	return f, nil
}

// Dir is the session's cgroup directory: what runs in it is accelerated.
func (s *Session) Dir() string { return s.cgroup.Name() }

// CgroupFD is a handle of Dir, for starting processes in it.
func (s *Session) CgroupFD() int { return int(s.cgroup.Fd()) }

// Stats are the session's totals so far.
func (s *Session) Stats() (accel.Stats, error) { return s.plane.Stats() }

// Conns lists the session's joined sockets.
func (s *Session) Conns() ([]accel.Conn, error) { return s.plane.Conns() }

// Exclusions lists the session's excluded workloads.
func (s *Session) Exclusions() ([]accel.Exclusion, error) { return s.plane.Exclusions() }

// ClearExclusions lets them join again, and returns how many there were.
func (s *Session) ClearExclusions() (int, error) { return s.plane.ClearExclusions() }

// Mapped counts the session's sockets that are in the map now.
func (s *Session) Mapped() (int, error) { return s.plane.Mapped() }

// Close removes the session. If something still uses it, it stays in place for
// the next session to clean up, and the error is ErrBusy.
func (s *Session) Close() error {
	s.stop()
	err := <-s.guards
	s.plane.Close()
	defer s.cgroup.Close() //nolint:errcheck // a directory
	// What the command killed last may still be on its way out.
	removeErr := removeSession(s.cgroup.Name())
	for deadline := time.Now().Add(endGrace); errors.Is(removeErr, ErrBusy) && time.Now().Before(deadline); {
		time.Sleep(endGrace / 50)
		removeErr = removeSession(s.cgroup.Name())
	}
	return errors.Join(err, removeErr)
}

// removeSession takes down the session with this cgroup unless it is in use. The
// caller holds the cgroup's lock, or the cgroup is gone.
func removeSession(cgroup string) error {
	busy, err := populated(cgroup)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("processes in %s: %w", cgroup, ErrBusy)
	}
	dir := filepath.Join(sessionPin, filepath.Base(cgroup))
	ours, err := attachedTo(dir, cgroup)
	if err != nil || !ours {
		return err
	}
	if err := accel.StopJoining(dir); err != nil {
		return err
	}
	plane, err := accel.Open(dir)
	if err == nil {
		n, err := plane.Mapped()
		plane.Close()
		if err != nil {
			return err
		}
		if n > 0 { // passed to a process outside
			return fmt.Errorf("%d sockets of %s: %w", n, cgroup, ErrBusy)
		}
	} else if !errors.Is(err, os.ErrNotExist) { // not having looked is no answer
		return err
	}
	if err := accel.Remove(dir); err != nil {
		return err
	}
	return removeTree(cgroup)
}

// attachedTo reports whether the instance pinned in dir may be taken for that of
// this cgroup: the name alone proves nothing, any user with a cgroup of their own
// can make one of the same name.
func attachedTo(dir, cgroup string) (bool, error) {
	var st unix.Stat_t
	err := unix.Stat(cgroup, &st)
	exists := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("look at %s: %w", cgroup, err)
	}
	if exists && int(st.Uid) != os.Geteuid() {
		return false, nil
	}
	id, err := accel.CgroupID(dir)
	if errors.Is(err, os.ErrNotExist) { // its maker died before it attached anything
		return true, nil
	}
	return id == 0 || exists && id == st.Ino, err
}

// removeTree removes a cgroup and those that the command made below it.
func removeTree(cgroup string) error {
	var dirs []string
	err := filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if e := os.Remove(dirs[i]); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func populated(cgroup string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(cgroup, "cgroup.events"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) { // removed
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for processes: %w", err)
	}
	return bytes.Contains(b, []byte("populated 1")), nil
}

// CleanUp removes what sessions left whose process was killed, except those
// that are still in use.
func CleanUp() error {
	mount, err := kernel.Cgroup2()
	if err != nil {
		return err
	}
	if err := accel.Private(sessionPin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, dir := range sessionCgroups(mount) {
		f, err := lock(dir, unix.LOCK_EX)
		if err != nil { // its maker lives, or another cleaner was faster
			continue
		}
		if err := removeSession(dir); err != nil && !errors.Is(err, ErrBusy) {
			errs = append(errs, err)
		}
		f.Close() //nolint:errcheck // a directory
	}
	// What is pinned outlives a cgroup that someone else removed, as systemd
	// does at the end of a login.
	instances, err := os.ReadDir(sessionPin)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, i := range instances {
		if !strings.HasPrefix(i.Name(), sessionPrefix) { // the agent's own
			continue
		}
		// That the cgroup cannot be seen from here is no proof; the kernel takes
		// it out of the link when it removes it.
		if id, err := accel.CgroupID(filepath.Join(sessionPin, i.Name())); err != nil || id != 0 {
			continue
		}
		if err := removeSession(filepath.Join(mount, i.Name())); err != nil && !errors.Is(err, ErrBusy) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sessionCgroups finds the cgroups of all sessions.
func sessionCgroups(mount string) []string {
	var found []string
	filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // the function returns none
		if err != nil || !d.IsDir() {
			return nil
		}
		if strings.HasPrefix(d.Name(), sessionPrefix) {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// Instance is one loaded accel instance as `shunt status` shows it.
type Instance struct {
	Name   string `json:"name" yaml:"name"`
	Cgroup string `json:"cgroup" yaml:"cgroup"`
	Pins   string `json:"pins" yaml:"pins"`
	Owned  bool   `json:"owned" yaml:"owned"` // its shunt process lives
	// Another build made it, so only Mapped is known.
	OtherBuild bool        `json:"other_build,omitempty" yaml:"other_build,omitempty"`
	Mapped     int         `json:"mapped" yaml:"mapped"`
	MaxQueue   uint32      `json:"max_queue" yaml:"max_queue"` // bytes that may wait at one receiver; 0: not known
	Stats      accel.Stats `json:"stats" yaml:"stats"`

	conns      []accel.Conn
	exclusions []accel.Exclusion
}

// Conns lists the instance's joined sockets at the time it was read.
func (i Instance) Conns() []accel.Conn { return i.conns }

// Exclusions lists the workloads that the instance has excluded.
func (i Instance) Exclusions() []accel.Exclusion { return i.exclusions }

// ClearExclusions lets all workloads of the instance join again, and returns how
// many there were.
func (i Instance) ClearExclusions() (int, error) {
	plane, err := accel.Open(i.Pins)
	if err != nil {
		return 0, err
	}
	defer plane.Close()
	return plane.ClearExclusions()
}

// Instances reads every loaded instance. With an error it still returns those
// that could be read: one of another version must not hide the others.
func Instances() ([]Instance, error) {
	mount, err := kernel.Cgroup2()
	if err != nil {
		return nil, err
	}
	var (
		list []Instance
		errs []error
	)
	add := func(dir, cgroup, locked string) {
		i, err := readInstance(filepath.Base(dir), cgroup, locked)
		switch {
		case errors.Is(err, os.ErrNotExist): // just made, or just gone
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(dir), err))
		default:
			list = append(list, i)
		}
	}
	for _, dir := range sessionCgroups(mount) {
		add(dir, dir, dir)
	}
	for _, dir := range append([]string{filepath.Join(sessionPin, agentPin)}, oldInstances(sessionPin)...) {
		add(dir, attachedCgroup(dir, mount), sessionPin)
	}
	return list, errors.Join(errs...)
}

// Instance reads the session as Instances does.
func (s *Session) Instance() (Instance, error) {
	i, err := readInstance(s.name, s.Dir(), s.Dir())
	i.Owned = true
	return i, err
}

// attachedCgroup is the cgroup of the instance pinned in dir, "" if it is gone.
func attachedCgroup(dir, mount string) (found string) {
	id, err := accel.CgroupID(dir)
	if err != nil || id == 0 {
		return ""
	}
	filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // the function returns none but SkipAll
		if err != nil || !d.IsDir() {
			return nil
		}
		if c, ok := cgroupAt(path); ok && c.id == id {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// readInstance reads one; locked is the directory that its owner locks.
func readInstance(name, cgroup, locked string) (Instance, error) {
	i := Instance{Name: name, Cgroup: cgroup, Pins: filepath.Join(sessionPin, name)}
	if f, err := lock(locked, unix.LOCK_SH); err == nil {
		f.Close() //nolint:errcheck // a directory
	} else {
		i.Owned = true
	}
	var err error
	// Its counters may mean something else, if they can be read at all.
	if i.OtherBuild = !accel.SameLayout(i.Pins); i.OtherBuild {
		i.Mapped, err = accel.Mapped(i.Pins)
		return i, err
	}
	plane, err := accel.Open(i.Pins)
	if err != nil {
		return i, err
	}
	defer plane.Close()
	if i.Mapped, err = plane.Mapped(); err != nil {
		return i, err
	}
	if i.Stats, i.conns, err = plane.Read(); err != nil {
		return i, err
	}
	if i.exclusions, err = plane.Exclusions(); err != nil {
		return i, err
	}
	i.MaxQueue, err = plane.MaxQueue()
	return i, err
}

// findNetns finds a network namespace by its cookie among those of this process
// and of the processes in the session.
func (s *Session) findNetns(cookie uint64) (string, error) {
	seen := map[string]bool{}
	try := func(path string) bool {
		id, err := os.Readlink(path)
		if err != nil || seen[id] {
			return false
		}
		seen[id] = true
		match := false
		err = kernel.InNetns(path, func() error {
			c, err := kernel.NetnsCookie()
			match = c == cookie
			return err
		})
		return err == nil && match
	}
	if own, err := kernel.NetnsCookie(); err == nil && own == cookie {
		return accel.OwnNetns, nil
	}
	var found string
	err := filepath.WalkDir(s.cgroup.Name(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close() //nolint:errcheck // read only
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if path := "/proc/" + sc.Text() + "/ns/net"; try(path) {
				found = path
				return fs.SkipAll
			}
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no process of the session is in the namespace with cookie %d", cookie)
	}
	return found, err
}
