// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/kernel"
)

// DefaultMaxQueue is the bound of G3 in bytes: what may wait at one receiver
// before a connection spills to the stack.
const DefaultMaxQueue = 4 << 20

// Options of one instance. The zero value keeps every guarantee.
type Options struct {
	MaxQueue uint32 // bytes; 0 means DefaultMaxQueue
	AcceptG4 bool   // join blocking sockets too: a signal may show as EAGAIN, MSG_WAITALL may return early
	AcceptG5 bool   // do not wait until the reader was seen in recv: readers that use splice(2) hang
	AcceptG6 bool   // do not require the reset guard: a close with unread bytes ends in FIN, not RST

	// Select: nothing is joined until Plane.Select says what. Without it the
	// cgroup is the instance's own, and everything in it is selected.
	Select bool
	// Fault is called before each change of the kernel's state, with its name;
	// an error ends the work there. For tests.
	Fault func(step string) error `json:"-"`
}

// Step announces a change of the kernel's state to Fault.
func (o Options) Step(format string, args ...any) error {
	if o.Fault == nil {
		return nil
	}
	return o.Fault(fmt.Sprintf(format, args...))
}

// Plane is one loaded instance: its programs attached to one cgroup, and all
// of its state pinned in one directory.
type Plane struct {
	dir  string
	coll *ebpf.Collection

	generation uint64                  // of the selection in force
	found      map[bpfSelectKey]uint64 // what its names stand for, generation 0
}

// ErrUnsupported is returned by Load where the kernel lacks what a guarantee
// needs and the options do not accept to go without.
var ErrUnsupported = errors.New("this kernel cannot keep a guarantee")

// Load builds an instance pinned in dir, a directory on bpffs that must not
// exist, and attaches it to cgroup (an absolute path on cgroup2). On error
// nothing is left behind.
func Load(dir, cgroup string, opts Options) (_ *Plane, err error) {
	spec, err := specFor(opts)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	if err := Private(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if err := opts.Step("make %s", filepath.Base(dir)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	p := &Plane{dir: dir}
	defer func() {
		if err != nil {
			p.Close()
			err = errors.Join(err, Remove(dir))
		}
	}()

	if err := opts.Step("load the programs"); err != nil {
		return nil, err
	}
	p.coll, err = ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the accel programs: %w", err)
	}
	for name, m := range p.coll.Maps {
		if strings.HasPrefix(name, ".") { // lives as long as its programs
			continue
		}
		if err := opts.Step("pin %s", name); err != nil {
			return nil, err
		}
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	if err := p.pinPrograms(opts); err != nil {
		return nil, err
	}
	if err := p.attach(cgroup, opts); err != nil {
		return nil, err
	}
	// Last: an instance that says what it is is complete.
	return p, p.writeAbout(opts)
}

// specFor is the object with the options set.
func specFor(opts Options) (*ebpf.CollectionSpec, error) {
	if opts.MaxQueue == 0 {
		opts.MaxQueue = DefaultMaxQueue
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	// One of the two, see splice.h.
	if kernel.CanTrace() {
		delete(spec.Programs, bpfProgSpliced)
	} else {
		delete(spec.Programs, bpfProgSplicedEntry)
	}
	// Blocking readers sit inside the kernel when bytes come: each needs its proof.
	trust := !opts.AcceptG4 && errors.Is(kernel.CheckFIONREAD(), kernel.ErrFIONREAD)
	for name, value := range map[string]any{
		bpfVarMaxQueue:       opts.MaxQueue,
		bpfVarAcceptBlocking: flag(opts.AcceptG4),
		bpfVarRequireReader:  flag(!opts.AcceptG5),
		bpfVarRequireGuard:   flag(!opts.AcceptG6),
		bpfVarSelective:      flag(opts.Select),
		bpfVarTrustWorkload:  flag(trust),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	return spec, nil
}

// attach switches the instance on. The order matters: whoever is joined must
// find the other programs in place, so sockops, which joins, comes last.
func (p *Plane) attach(cgroup string, opts Options) error {
	if err := p.attachToMaps(opts); err != nil {
		return err
	}
	if err := opts.Step("attach %s", bpfProgReceive); err != nil {
		return err
	}
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{
		Name:    "sock_recv_length",
		Program: p.coll.Programs[bpfProgReceive],
	})
	switch {
	case err == nil:
		if err := p.pin(l, "link-received"); err != nil {
			return err
		}
	case !opts.AcceptG5:
		return fmt.Errorf("%w: G5 needs the tracepoint sock_recv_length (Linux 6.3); --accept G5 goes without: %w", ErrUnsupported, err)
	}

	if err := p.attachSplice(opts); err != nil {
		return err
	}

	for _, h := range []struct {
		name, prog string
		attach     ebpf.AttachType
	}{
		{linkReleased, bpfProgReleased, ebpf.AttachCgroupInetSockRelease},
		{linkJoin, bpfProgJoin, ebpf.AttachCGroupSockOps},
	} {
		if err := opts.Step("attach %s", h.prog); err != nil {
			return err
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: p.coll.Programs[h.prog]})
		if err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.prog, cgroup, err)
		}
		if err := p.pin(l, h.name); err != nil {
			return err
		}
	}
	return nil
}

// attachSplice watches for readers that turn to splice. Where one watches
// already, the new one takes its place: seeing a reader twice changes nothing.
func (p *Plane) attachSplice(opts Options) error {
	if err := opts.Step("attach %s", bpfProgSpliced); err != nil {
		return err
	}
	var (
		l   link.Link
		err error
	)
	if prog := p.coll.Programs[bpfProgSplicedEntry]; prog != nil {
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	} else {
		l, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "tcp_rcv_space_adjust", Program: p.coll.Programs[bpfProgSpliced]})
	}
	if err != nil {
		return fmt.Errorf("watch for splice readers: %w", err)
	}
	defer l.Close() //nolint:errcheck // the pin holds the link
	return p.pinAs(linkSpliced, l.Pin)
}

// pinAs pins something under a name, in the place of what is pinned there.
func (p *Plane) pinAs(name string, pin func(path string) error) error {
	path := filepath.Join(p.dir, name)
	fresh := path + "-new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove an earlier try: %w", err)
	}
	if err := pin(fresh); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// attachToMaps puts the programs in place that live in a map. Doing it again
// replaces them; a socket that is in the map keeps the message program it got.
func (p *Plane) attachToMaps(opts Options) error {
	if err := opts.Step("attach %s", bpfProgRedirect); err != nil {
		return err
	}
	// Attached to the map, not linked: that works on every kernel, and lives
	// as long as the map.
	err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target:  p.coll.Maps[bpfMapShuntSocks].FD(),
		Program: p.coll.Programs[bpfProgRedirect],
		Attach:  ebpf.AttachSkMsgVerdict,
	})
	if err != nil {
		return fmt.Errorf("attach the message program to its map: %w", err)
	}
	if err := opts.Step("put %s in its slot", bpfProgReceived); err != nil {
		return err
	}
	if err := p.coll.Maps[bpfMapShuntReceived].Put(uint32(0), p.coll.Programs[bpfProgReceived]); err != nil {
		return fmt.Errorf("put the program that sees receive calls in its slot: %w", err)
	}
	return nil
}

// pin keeps a link alive without this process.
func (p *Plane) pin(l link.Link, name string) error {
	defer l.Close() //nolint:errcheck // the pin holds the link
	if err := l.Pin(filepath.Join(p.dir, name)); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// Open gives access to the state of the instance pinned in dir, for reading.
func Open(dir string) (*Plane, error) {
	p := &Plane{dir: dir, coll: &ebpf.Collection{Maps: map[string]*ebpf.Map{}}}
	for _, name := range []string{bpfMapShuntConns, bpfMapShuntStats, bpfMapShuntSocks, bpfMapShuntGuards, bpfMapShuntExclusions} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("open %s of %s: %w", name, dir, err)
		}
		p.coll.Maps[name] = m
	}
	return p, nil
}

// MaxQueue is the bound of G3 that the instance was loaded with, in bytes.
func (p *Plane) MaxQueue() (uint32, error) {
	spec, err := loadBpf()
	if err != nil {
		return 0, err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, pinOptions), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("open the options of %s: %w", p.dir, err)
	}
	defer m.Close() //nolint:errcheck // only read
	options, err := m.LookupBytes(uint32(0))
	if err != nil {
		return 0, fmt.Errorf("read the options of %s: %w", p.dir, err)
	}
	at := int(spec.Variables[bpfVarMaxQueue].Offset)
	if len(options) < at+4 {
		return 0, fmt.Errorf("the options of %s are those of another version of shunt", p.dir)
	}
	return binary.NativeEndian.Uint32(options[at:]), nil
}

// Dir is the pin directory.
func (p *Plane) Dir() string { return p.dir }

// Close gives back this process's handles. What is pinned goes on.
func (p *Plane) Close() {
	if p.coll != nil {
		p.coll.Close()
	}
}

// Mapped counts the sockets that are in the map now. Without the instance they
// would go on there, but with nobody to keep their guarantees.
func (p *Plane) Mapped() (int, error) {
	var (
		n           int
		key, cookie uint64
	)
	it := p.coll.Maps[bpfMapShuntSocks].Iterate()
	for it.Next(&key, &cookie) {
		n++
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return n, fmt.Errorf("list joined sockets: %w", err)
	}
	return n, nil
}

// StopJoining lets no further socket into the instance pinned in dir.
func StopJoining(dir string) error {
	if err := os.Remove(filepath.Join(dir, linkJoin)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stop joining: %w", err)
	}
	return nil
}

// CgroupID is the ID (the inode number of its directory) of the cgroup that the
// instance pinned in dir is attached to; 0 if that cgroup is gone.
func CgroupID(dir string) (uint64, error) {
	for _, name := range []string{linkReleased, linkJoin} {
		l, err := link.LoadPinnedLink(filepath.Join(dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("open %s of %s: %w", name, dir, err)
		}
		info, err := l.Info()
		l.Close() //nolint:errcheck // only read
		if err != nil {
			return 0, fmt.Errorf("ask %s of %s: %w", name, dir, err)
		}
		if c := info.Cgroup(); c != nil {
			return c.CgroupId, nil
		}
	}
	return 0, fmt.Errorf("%s has no link to a cgroup: %w", dir, os.ErrNotExist)
}

// Private makes sure that nobody else could put something into the directory
// that holds the instances.
func Private(dir string) error {
	for _, d := range []string{filepath.Dir(dir), dir} {
		var st unix.Stat_t
		if err := unix.Lstat(d, &st); err != nil {
			return fmt.Errorf("look at %s: %w", d, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
			return fmt.Errorf("%s must be a directory that only its owner, this user, can write to: remove it, or correct it", d)
		}
	}
	return nil
}

// Remove takes the instance pinned in dir out of the kernel: links first, so
// that nobody joins while the maps go. It is fine if dir does not exist.
func Remove(dir string) error { return RemoveWith(dir, Options{}) }

// RemoveWith is Remove for tests that make it fail.
func RemoveWith(dir string, opts Options) error {
	if st, err := os.Lstat(dir); err == nil && !st.IsDir() {
		return fmt.Errorf("remove %s: not a directory", dir)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	var errs []error
	// First what says that the instance is complete: if this process dies in
	// here, the next one goes on, and does not take the rest for an instance.
	for pass := range 3 {
		for _, e := range entries {
			if removalPass(e.Name()) != pass {
				continue
			}
			if err := opts.Step("remove %s", e.Name()); err != nil {
				return errors.Join(append(errs, err)...)
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := opts.Step("remove the directory"); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Names of pinned links.
const (
	linkJoin     = "link-join"
	linkReleased = "link-released"
	linkSpliced  = "link-spliced"
	linkGuard    = "link-guard-"
)

// pinOptions is the pin of the options that the programs were loaded with.
const pinOptions = "options"

func removalPass(name string) int {
	switch {
	case name == aboutPin:
		return 0
	case strings.HasPrefix(name, "link-"):
		return 1
	}
	return 2
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}
