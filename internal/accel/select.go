// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// MaxSelectors is the number of selectors in a Selection: one bit each.
const MaxSelectors = 64

// PortRange is First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Selector matches the end of a connection that every dimension which it names
// matches. Ports and Addresses are named where they are not empty; they mean the
// server's port and either address of the connection.
type Selector struct {
	Ports     []PortRange
	Addresses []netip.Prefix
	UIDs      []uint32
	// Sets that may be empty and yet named: what they stand for does not exist now.
	NamesCgroup bool
	Cgroups     []uint64 // ids; what is below matches too
	NamesNetns  bool
	Netns       []uint64 // cookies
}

// Selection says which connections are accelerated: one of the ends matches one
// of Select, and no end matches one of Exclude.
type Selection struct{ Select, Exclude []Selector }

// generation is a Selection as the tables have it.
type generation struct {
	head     bpfSelection
	values   map[bpfSelectKey]uint64
	prefixes map[netip.Prefix]uint64
}

// Check says whether the selection can be put into the tables.
func (s Selection) Check() error {
	_, err := compile(s)
	return err
}

// compile turns selectors into bits. For prefixes, the kernel finds the longest
// only: it gets the bits of those that cover it as well.
func compile(sel Selection) (*generation, error) {
	if n := len(sel.Select) + len(sel.Exclude); n > MaxSelectors {
		return nil, fmt.Errorf("%d selectors, and %d are the most that fit", n, MaxSelectors)
	}
	g := &generation{values: map[bpfSelectKey]uint64{}, prefixes: map[netip.Prefix]uint64{}}
	for i, s := range append(append([]Selector{}, sel.Select...), sel.Exclude...) {
		bit := uint64(1) << i
		if i < len(sel.Select) {
			g.head.Select |= bit
		} else {
			g.head.Exclude |= bit
		}
		set := func(dim bpfDimension, value uint64) {
			g.head.Named[dim] |= bit
			g.values[bpfSelectKey{Dimension: uint32(dim), Value: value}] |= bit
		}
		for _, r := range s.Ports {
			for p := uint64(r.First); p <= uint64(r.Last); p++ {
				set(bpfDimensionDIM_PORT, p)
			}
		}
		for _, u := range s.UIDs {
			set(bpfDimensionDIM_UID, uint64(u))
		}
		if s.NamesNetns {
			g.head.Named[bpfDimensionDIM_NETNS] |= bit
		}
		for _, n := range s.Netns {
			set(bpfDimensionDIM_NETNS, n)
		}
		if s.NamesCgroup {
			g.head.Named[bpfDimensionDIM_CGROUP] |= bit
		}
		for _, c := range s.Cgroups {
			set(bpfDimensionDIM_CGROUP, c)
		}
		for _, a := range s.Addresses {
			g.head.Named[bpfDimensionDIM_ADDRESS] |= bit
			g.prefixes[mapped(a)] |= bit
		}
	}
	own := make(map[netip.Prefix]uint64, len(g.prefixes))
	for p, mask := range g.prefixes {
		own[p] = mask
	}
	for p := range own {
		for bits := p.Bits() - 1; bits >= 0; bits-- {
			cover, err := p.Addr().Prefix(bits)
			if err != nil {
				return nil, fmt.Errorf("shorten %v: %w", p, err)
			}
			g.prefixes[p] |= own[cover]
		}
	}
	return g, nil
}

// mapped is the prefix as the kernel half has addresses: IPv4 in ::ffff:0:0/96.
func mapped(p netip.Prefix) netip.Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), bits).Masked()
}

func prefixKey(gen uint64, p netip.Prefix) bpfSelectPrefix {
	key := bpfSelectPrefix{Bits: 64 + uint32(p.Bits())}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], gen)
	for i := range key.Generation {
		key.Generation[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	addr := p.Addr().As16()
	for i := range key.Addr {
		key.Addr[i] = binary.NativeEndian.Uint32(addr[4*i:])
	}
	return key
}

// Select makes sel what the instance joins from now on. Connections that are
// established stay as they are. If it fails, the selection before it goes on.
func (p *Plane) Select(sel Selection, opts Options) (err error) {
	g, err := compile(sel)
	if err != nil {
		return err
	}
	// A clock that never goes back makes a number that was not used before,
	// whoever built the generation before this one.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	g.head.Generation = uint64(now.Nano())
	defer func() {
		if err != nil { // what was built beside is nobody's
			err = errors.Join(err, p.sweep(func(gen uint64) bool { return gen != g.head.Generation }))
		}
	}()

	if err := opts.Step("build a generation"); err != nil {
		return err
	}
	values := p.coll.Maps[bpfMapShuntSelect]
	for key, mask := range g.values {
		key.Generation = g.head.Generation
		if err := values.Put(key, mask); err != nil {
			return fmt.Errorf("build the selection: %w", err)
		}
	}
	prefixes := p.coll.Maps[bpfMapShuntSelectAddr]
	for prefix, mask := range g.prefixes {
		if err := prefixes.Put(prefixKey(g.head.Generation, prefix), mask); err != nil {
			return fmt.Errorf("build the selection of addresses: %w", err)
		}
	}
	slot, err := ebpf.NewMap(&ebpf.MapSpec{Name: "shunt_selected", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(g.head)), MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make the selection's head: %w", err)
	}
	defer slot.Close() //nolint:errcheck // the outer map holds it
	if err := slot.Put(uint32(0), g.head); err != nil {
		return fmt.Errorf("fill the selection's head: %w", err)
	}
	if err := opts.Step("switch to the generation"); err != nil {
		return err
	}
	// The switch. When it returns, no program is still judging by the old one.
	if err := p.coll.Maps[bpfMapShuntSelection].Put(uint32(0), slot); err != nil {
		return fmt.Errorf("switch the selection: %w", err)
	}
	p.generation = g.head.Generation
	p.found = g.found()
	if err := opts.Step("remove the generation before"); err != nil {
		return nil //nolint:nilerr // it is in force; the next one sweeps too
	}
	// Not an error of the selection: it is in force, and the next one sweeps again.
	if err := p.sweep(func(gen uint64) bool { return gen == g.head.Generation }); err != nil {
		slog.Warn("the selection before was not removed", "err", err)
	}
	return nil
}

// found is what names in the selectors stood for: it comes and goes.
func (g *generation) found() map[bpfSelectKey]uint64 {
	found := map[bpfSelectKey]uint64{}
	for key, mask := range g.values {
		switch bpfDimension(key.Dimension) {
		case bpfDimensionDIM_CGROUP, bpfDimensionDIM_NETNS:
			found[key] = mask
		}
	}
	return found
}

// Recheck brings the selection in force up to date: sel has the same selectors,
// but cgroups or namespaces that they name came or went. Each is one entry, so
// none is judged by half of it.
func (p *Plane) Recheck(sel Selection) error {
	// Only what comes and goes: a range may be 65535 ports.
	short := func(full []Selector) (names []Selector) {
		for _, s := range full {
			names = append(names, Selector{NamesCgroup: s.NamesCgroup, Cgroups: s.Cgroups, NamesNetns: s.NamesNetns, Netns: s.Netns})
		}
		return names
	}
	g, err := compile(Selection{Select: short(sel.Select), Exclude: short(sel.Exclude)})
	if err != nil {
		return err
	}
	now := g.found()
	values := p.coll.Maps[bpfMapShuntSelect]
	for key, mask := range now {
		if p.found[key] == mask {
			continue
		}
		key.Generation = p.generation
		if err := values.Put(key, mask); err != nil {
			return fmt.Errorf("select what came: %w", err)
		}
	}
	for key := range p.found {
		if _, ok := now[key]; ok {
			continue
		}
		key.Generation = p.generation
		if err := values.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget what went: %w", err)
		}
	}
	p.found = now
	return nil
}

// sweep removes the entries of generations that are not to be kept.
func (p *Plane) sweep(keep func(generation uint64) bool) error {
	var (
		key    bpfSelectKey
		prefix bpfSelectPrefix
		mask   uint64
		keys   []bpfSelectKey
		prefs  []bpfSelectPrefix
	)
	values, prefixes := p.coll.Maps[bpfMapShuntSelect], p.coll.Maps[bpfMapShuntSelectAddr]
	it := values.Iterate()
	for it.Next(&key, &mask) {
		if !keep(key.Generation) {
			keys = append(keys, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list the selection: %w", err)
	}
	it = prefixes.Iterate()
	for it.Next(&prefix, &mask) {
		var b [8]byte
		for i, word := range prefix.Generation {
			binary.NativeEndian.PutUint32(b[4*i:], word)
		}
		if !keep(binary.NativeEndian.Uint64(b[:])) {
			prefs = append(prefs, prefix)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list the selection of addresses: %w", err)
	}
	for _, key := range keys {
		if err := values.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove an old selection: %w", err)
		}
	}
	for _, prefix := range prefs {
		if err := prefixes.Delete(prefix); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove an old selection of addresses: %w", err)
		}
	}
	return nil
}
