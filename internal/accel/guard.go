// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"

	"github.com/shuntnet/shunt/internal/kernel"
)

// OwnNetns stands for the network namespace of this process, see [kernel.InNetns].
const OwnNetns = ""

// GuardLoopback puts the reset guard of G6 on loopback in this process's
// network namespace, ahead of the first connection.
func (p *Plane) GuardLoopback() error {
	const loopback = 1 // in every namespace
	cookie, err := kernel.NetnsCookie()
	if err != nil {
		return err
	}
	return p.guard(OwnNetns, bpfGuardKey{Netns: cookie, Ifindex: loopback})
}

// guard puts the reset guard on a device of the network namespace at netns (a
// path as /proc/PID/ns/net, or OwnNetns), and lets pairs start whose receiver
// sends through that device. A device that cannot have it is noted as such.
func (p *Plane) guard(netns string, key bpfGuardKey) error {
	attach := func() error {
		cookie, err := kernel.NetnsCookie()
		if err != nil {
			return err
		}
		if cookie != key.Netns { // the process left it, or its PID was used again
			return fmt.Errorf("%s is another namespace by now", netns)
		}
		return p.attachGuard(key)
	}
	attachErr := kernel.InNetns(netns, attach)
	state := uint8(bpfGuardStateGUARD_ON)
	if attachErr != nil {
		state = uint8(bpfGuardStateGUARD_REFUSED)
	}
	if err := p.coll.Maps[bpfMapShuntGuards].Put(key, state); err != nil {
		return fmt.Errorf("note the guard of device %d: %w", key.Ifindex, err)
	}
	return attachErr
}

func (p *Plane) attachGuard(key bpfGuardKey) error {
	dev, err := netlink.LinkByIndex(int(key.Ifindex))
	if err != nil {
		return fmt.Errorf("find device %d: %w", key.Ifindex, err)
	}
	// The guard finds the TCP header behind an Ethernet one.
	if encap := dev.Attrs().EncapType; encap != "ether" && encap != "loopback" {
		return fmt.Errorf("device %s has %s frames, the reset guard needs Ethernet ones", dev.Attrs().Name, encap)
	}
	pin := fmt.Sprintf(linkGuard+"%x-%d", key.Netns, key.Ifindex)
	if on, err := p.hasGuard(pin, key.Ifindex); on || err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: int(key.Ifindex),
		Program:   p.coll.Programs[bpfProgReset],
		Attach:    ebpf.AttachTCXEgress,
	})
	if err != nil {
		return fmt.Errorf("%w: G6 needs a TCX program on %s (Linux 6.6); --accept G6 goes without: %w", ErrUnsupported, dev.Attrs().Name, err)
	}
	return p.pin(l, pin)
}

// hasGuard reports whether the guard is there already, as that of an instance
// that was adopted. One whose device is gone is taken away.
func (p *Plane) hasGuard(pin string, ifindex uint32) (bool, error) {
	path := filepath.Join(p.dir, pin)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", pin, err)
	}
	defer l.Close() //nolint:errcheck // the pin holds it
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("ask %s: %w", pin, err)
	}
	if tcx := info.TCX(); tcx != nil && tcx.Ifindex == ifindex {
		return true, nil
	}
	if err := os.Remove(path); err != nil {
		return false, fmt.Errorf("remove the guard of a device that is gone: %w", err)
	}
	return false, nil
}

// Serve does for the kernel half what only user space can, until ctx ends: it
// guards devices as they are met, and resets splice readers that would wait for
// ever. findNetns returns the path of the namespace with that cookie.
func (p *Plane) Serve(ctx context.Context, findNetns func(cookie uint64) (string, error)) error {
	r, err := ringbuf.NewReader(p.coll.Maps[bpfMapShuntEvents])
	if err != nil {
		return fmt.Errorf("read requests of the kernel half: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() }) //nolint:errcheck // only wakes Read
	defer stop()
	defer r.Close() //nolint:errcheck // nothing was written
	var unsticking sync.WaitGroup
	defer unsticking.Wait() // they use the plane
	for {
		rec, err := r.Read()
		if errors.Is(err, ringbuf.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read requests of the kernel half: %w", err)
		}
		var e bpfEvent
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			return fmt.Errorf("decode a request of the kernel half: %w", err)
		}
		netns, err := findNetns(e.Netns)
		if e.Kind == uint32(bpfEventKindEVENT_STUCK) {
			// Beside the loop: it gives the reader time. At most one per connection.
			unsticking.Go(func() { p.unstick(ctx, e.Cookie, netns, err) })
			continue
		}
		if err == nil {
			err = p.guard(netns, bpfGuardKey{Netns: e.Netns, Ifindex: e.Ifindex})
		}
		if err != nil {
			slog.Debug("connections through this device stay on the stack", "netns", e.Netns, "ifindex", e.Ifindex, "err", err)
		}
	}
}

// ForgetDeadGuards removes what is left of guards whose device is gone, and lets
// devices that could not have one be asked about again. Namespaces come and go;
// without this the table of devices fills up.
func (p *Plane) ForgetDeadGuards() error {
	alive := map[bpfGuardKey]bool{}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("list the guards: %w", err)
	}
	for _, e := range entries {
		var key bpfGuardKey
		name, ok := strings.CutPrefix(e.Name(), linkGuard)
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(name, "%x-%d", &key.Netns, &key.Ifindex); err != nil {
			return fmt.Errorf("read the name of guard %s: %w", e.Name(), err)
		}
		on, err := p.hasGuard(e.Name(), key.Ifindex)
		if err != nil {
			return err
		}
		alive[key] = on
	}
	m := p.coll.Maps[bpfMapShuntGuards]
	var (
		key   bpfGuardKey
		state uint8
		dead  []bpfGuardKey
	)
	it := m.Iterate()
	for it.Next(&key, &state) {
		if bpfGuardState(state) != bpfGuardStateGUARD_ASKED && !alive[key] {
			dead = append(dead, key)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("list guarded devices: %w", err)
	}
	for _, key := range dead {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a device: %w", err)
		}
	}
	return nil
}
