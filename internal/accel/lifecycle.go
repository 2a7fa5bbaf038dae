// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// protocol counts changes of what the programs mean by the state in their maps
// that its layout does not show. Sockets that are joined keep the message program
// of the build that joined them, so an upgrade runs both against the same maps.
const protocol = 1

// What an instance says about itself: a pinned map that only user space reads.
const (
	aboutPin  = "about"
	aboutSize = 64
	drainPin  = "prog-drain"
	resetPin  = "prog-reset"
	stuckPin  = "prog-stuck"
)

// pinnedPrograms are those that user space needs again, by pin.
var pinnedPrograms = map[string]string{drainPin: bpfProgDrain, resetPin: bpfProgReset, stuckPin: bpfProgStuck}

// ErrLayout says that an instance's maps are not this build's.
var ErrLayout = errors.New("the instance was made by a build with another layout")

// about is two hashes: of the layout of the maps, and of the programs with their
// options.
type about struct{ Layout, Build [aboutSize / 2]byte }

func aboutThis(opts Options) (a about, err error) {
	spec, err := loadBpf()
	if err != nil {
		return a, err
	}
	layout := sha256.New()
	fmt.Fprintln(layout, protocol)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		if strings.HasPrefix(name, ".") { // constants live as long as their programs
			continue
		}
		fmt.Fprintln(layout, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		for _, t := range []btf.Type{m.Key, m.Value} {
			fmt.Fprintln(layout, describe(t))
		}
	}
	layout.Sum(a.Layout[:0])
	build := sha256.New()
	build.Write(_BpfBytes)
	if opts.MaxQueue == 0 {
		opts.MaxQueue = DefaultMaxQueue
	}
	fmt.Fprintln(build, opts.MaxQueue, opts.AcceptG4, opts.AcceptG5, opts.AcceptG6, opts.Select)
	build.Sum(a.Build[:0])
	return a, nil
}

// describe writes a type with the name and place of everything in it.
func describe(t btf.Type) string {
	switch t := btf.UnderlyingType(t).(type) {
	case nil:
		return ""
	case *btf.Struct:
		var b strings.Builder
		for _, m := range t.Members {
			fmt.Fprintf(&b, "%s@%d:%s;", m.Name, m.Offset, describe(m.Type))
		}
		return b.String()
	case *btf.Array:
		return fmt.Sprintf("%d×%s", t.Nelems, describe(t.Type))
	case *btf.Int:
		return fmt.Sprintf("%d bytes", t.Size)
	default:
		return fmt.Sprintf("%T", t)
	}
}

func (p *Plane) writeAbout(opts Options) error {
	a, err := aboutThis(opts)
	if err != nil {
		return err
	}
	return p.noteAbout(a, opts)
}

func (p *Plane) noteAbout(a about, opts Options) error {
	path := filepath.Join(p.dir, aboutPin)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		if err := opts.Step("pin %s", aboutPin); err != nil {
			return err
		}
		m, err = ebpf.NewMap(&ebpf.MapSpec{Name: "shunt_about", Type: ebpf.Hash, KeySize: 4, ValueSize: aboutSize, MaxEntries: 1})
		if err == nil {
			err = m.Pin(path)
		}
	}
	if err != nil {
		return fmt.Errorf("pin what %s is: %w", p.dir, err)
	}
	defer m.Close() //nolint:errcheck // the pin holds it
	if err := opts.Step("write %s", aboutPin); err != nil {
		return err
	}
	if err := m.Put(uint32(0), a); err != nil {
		return fmt.Errorf("note what %s is: %w", p.dir, err)
	}
	return nil
}

func readAbout(dir string) (a about, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, aboutPin), nil)
	if err != nil {
		return a, fmt.Errorf("ask what %s is: %w", dir, err)
	}
	defer m.Close() //nolint:errcheck // only read
	if err := m.Lookup(uint32(0), &a); err != nil {
		return a, fmt.Errorf("ask what %s is: %w", dir, err)
	}
	return a, nil
}

// SameLayout reports whether this build can read the instance pinned in dir.
// A session's says nothing about itself until it is complete.
func SameLayout(dir string) bool {
	have, err := readAbout(dir)
	if err != nil {
		return false
	}
	want, err := aboutThis(Options{})
	return err == nil && have.Layout == want.Layout
}

// pinPrograms pins those that user space needs again: the pin is how the next
// process gets them. A pin that is there is replaced at once.
func (p *Plane) pinPrograms(opts Options) error {
	for pin, prog := range pinnedPrograms {
		if err := opts.Step("pin %s", pin); err != nil {
			return err
		}
		if err := p.pinAs(pin, p.coll.Programs[prog].Pin); err != nil {
			return err
		}
	}
	if err := opts.Step("pin %s", pinOptions); err != nil {
		return err
	}
	return p.pinAs(pinOptions, p.coll.Maps[".rodata"].Pin)
}

// Adopt takes over the instance pinned in dir, whoever made it, under traffic.
// If another build made it, or other options, its programs are replaced and its
// maps kept; upgraded says so. The error is ErrLayout where that cannot be: the
// instance then goes on as it is.
func Adopt(dir string, opts Options) (_ *Plane, upgraded bool, err error) {
	have, err := readAbout(dir)
	if err != nil {
		return nil, false, err
	}
	want, err := aboutThis(opts)
	if err != nil {
		return nil, false, err
	}
	if have.Layout != want.Layout {
		return nil, false, fmt.Errorf("%s: %w", dir, ErrLayout)
	}
	spec, err := specFor(opts)
	if err != nil {
		return nil, false, err
	}
	p := &Plane{dir: dir}
	pinned := map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			p.Close()
			for _, m := range pinned {
				m.Close() //nolint:errcheck // the pin holds it
			}
		}
	}()
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if pinned[name], err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return nil, false, fmt.Errorf("open %s of %s: %w", name, dir, err)
		}
	}
	if have.Build == want.Build {
		p.coll = &ebpf.Collection{Maps: pinned, Programs: map[string]*ebpf.Program{}}
		for pin, prog := range pinnedPrograms {
			if p.coll.Programs[prog], err = ebpf.LoadPinnedProgram(filepath.Join(dir, pin), nil); err != nil {
				return nil, false, fmt.Errorf("open %s of %s: %w", prog, dir, err)
			}
		}
		return p, false, nil
	}
	if err = opts.Step("load the programs"); err != nil {
		return nil, false, err
	}
	p.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: pinned})
	if err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			err = fmt.Errorf("%w: %w", ErrLayout, err)
		}
		return nil, false, fmt.Errorf("load the accel programs: %w", err)
	}
	for name, m := range pinned {
		m.Close() //nolint:errcheck // the collection has its own handle
		delete(pinned, name)
	}
	if err = p.replace(opts); err != nil {
		return nil, false, err
	}
	return p, true, nil
}

// replace puts this build's programs in the place of those that run. Between any
// two steps both builds work on the same maps, which the layout allows; what was
// replaced when a crash came is replaced again by the next try.
func (p *Plane) replace(opts Options) error {
	// From here on it is no build's, or a try that failed halfway would leave one
	// that the build before takes for its own.
	a, err := aboutThis(opts)
	if err != nil {
		return err
	}
	a.Build = [len(a.Build)]byte{}
	if err := p.noteAbout(a, opts); err != nil {
		return err
	}
	if err := p.pinPrograms(opts); err != nil {
		return err
	}
	// As when loading: first what joined sockets rely on, then what joins.
	if err := p.attachToMaps(opts); err != nil {
		return err
	}
	if err := p.attachSplice(opts); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("list the links of %s: %w", p.dir, err)
	}
	programs := []struct{ link, prog string }{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), linkGuard) {
			programs = append(programs, struct{ link, prog string }{e.Name(), bpfProgReset})
		}
	}
	programs = append(programs, struct{ link, prog string }{linkReleased, bpfProgReleased}, struct{ link, prog string }{linkJoin, bpfProgJoin})
	for _, l := range programs {
		if err := opts.Step("update %s", l.prog); err != nil {
			return err
		}
		if err := updateLink(filepath.Join(p.dir, l.link), p.coll.Programs[l.prog]); err != nil {
			return fmt.Errorf("give %s the new program: %w", l.link, err)
		}
	}
	return p.writeAbout(opts)
}

func updateLink(path string, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // the pin holds it
	if err := l.Update(prog); err != nil {
		if strings.HasPrefix(filepath.Base(path), linkGuard) {
			// Its device went, and with it the link.
			if info, e := l.Info(); e == nil && info.TCX() != nil && info.TCX().Ifindex == 0 {
				return os.Remove(path)
			}
		}
		return err
	}
	return nil
}

// StopSelecting lets no new connection into the instance pinned in dir, of
// whatever build, and leaves those alone that are in it. When it returns, no
// program is in the middle of letting one in.
func StopSelecting(dir string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpfMapShuntSelection), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the selection of %s: %w", dir, err)
	}
	defer m.Close() //nolint:errcheck // the pin holds it
	if err := m.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("stop selecting: %w", err)
	}
	return nil
}

// Remaining are the sockets that Drain has to wait for.
type Remaining struct {
	listed bool // there were sockets to look at, or not all could be listed

	Unread   []uint64 `json:"unread"`   // cookies: redirected bytes that the application has not read
	Unpaired []uint64 `json:"unpaired"` // cookies: the accepting end is not there yet
}

// Empty: no socket was there, so none can have come while the others were looked at.
func (r Remaining) Empty() bool { return !r.listed }

// Sockets in all.
func (r Remaining) Sockets() int { return len(r.Unread) + len(r.Unpaired) }

// Drain takes the sockets of the instance pinned in dir back to plain TCP, of
// whatever build. Those that cannot go yet without losing bytes are returned;
// call it again later. New ones join unless StopSelecting was called before.
func Drain(dir string) (r Remaining, err error) {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(dir, drainPin), nil)
	if err != nil {
		return r, fmt.Errorf("open the draining program of %s: %w", dir, err)
	}
	defer prog.Close() //nolint:errcheck // the pin holds it
	socks, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpfMapShuntSocks), nil)
	if err != nil {
		return r, fmt.Errorf("open the sockets of %s: %w", dir, err)
	}
	defer socks.Close() //nolint:errcheck // the pin holds it

	// The list first: taking entries out disturbs the iteration.
	var (
		cookies    []uint64
		key, value uint64
	)
	it := socks.Iterate()
	for it.Next(&key, &value) {
		cookies = append(cookies, key)
	}
	err = it.Err()
	if err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return r, fmt.Errorf("list joined sockets: %w", err)
	}
	r.listed = err != nil || len(cookies) > 0
	// The program reads the cookie where a packet's Ethernet header would be.
	var packet [64]byte
	for _, c := range cookies {
		binary.NativeEndian.PutUint64(packet[:], c)
		state, err := prog.Run(&ebpf.RunOptions{Data: bytes.Clone(packet[:])})
		if err != nil {
			return r, fmt.Errorf("run the draining program: %w", err)
		}
		switch bpfDrained(state) {
		case bpfDrainedDRAIN_QUEUED:
			r.Unread = append(r.Unread, c)
		case bpfDrainedDRAIN_UNPAIRED:
			r.Unpaired = append(r.Unpaired, c)
		}
	}
	return r, nil
}

// Mapped counts the joined sockets of the instance pinned in dir, of whatever
// build.
func Mapped(dir string) (int, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpfMapShuntSocks), nil)
	if err != nil {
		return 0, fmt.Errorf("open the sockets of %s: %w", dir, err)
	}
	p := Plane{coll: &ebpf.Collection{Maps: map[string]*ebpf.Map{bpfMapShuntSocks: m}}}
	defer p.Close()
	return p.Mapped()
}

// Complete reports whether the instance pinned in dir was loaded to the end.
func Complete(dir string) bool {
	_, err := readAbout(dir)
	return err == nil
}

// Rename moves the instance's pins; it is the same instance. What opened it
// before keeps what it opened.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("rename the pins: %w", err)
	}
	return nil
}

// MovedTo tells the plane where its pins are now.
func (p *Plane) MovedTo(dir string) { p.dir = dir }

// Inherit takes over what before knows about the selection in force.
func (p *Plane) Inherit(before *Plane) { p.generation, p.found = before.generation, before.found }

// AskGuardsAgain forgets requests that nobody answered, as those that were read
// by a process that died. The kernel half asks again when it needs the guard.
func (p *Plane) AskGuardsAgain() error {
	m := p.coll.Maps[bpfMapShuntGuards]
	var (
		key     bpfGuardKey
		state   uint8
		waiting []bpfGuardKey
	)
	it := m.Iterate()
	for it.Next(&key, &state) {
		if bpfGuardState(state) == bpfGuardStateGUARD_ASKED {
			waiting = append(waiting, key)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("list guarded devices: %w", err)
	}
	for _, key := range waiting {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a guard request: %w", err)
		}
	}
	return nil
}
