// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// place is where the two ends of a connection are.
type place struct {
	server, client *os.File // network namespaces; nil for our own
	listen         string   // TCP address the server binds to
}

func openPlace(name string) (*place, error) {
	switch name {
	case PlaceLoopback:
		return &place{listen: "tcp:127.0.0.1:0"}, nil
	case PlaceVeth:
		return openVeth()
	}
	return nil, fmt.Errorf("no place %q: want %s or %s", name, PlaceLoopback, PlaceVeth)
}

// openVeth joins two new network namespaces by a veth pair. Both exist only
// through our file descriptors: however this process ends, they go with it.
func openVeth() (_ *place, err error) {
	p := &place{listen: "tcp:10.77.0.2:0"}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make two namespaces joined by veth: %w", err), p.close())
		}
	}()
	if p.client, err = newNetns(); err != nil {
		return nil, err
	}
	if p.server, err = newNetns(); err != nil {
		return nil, err
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(p.client.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer in.Close()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "veth0"})
	pair.PeerName = "veth0"
	pair.PeerNamespace = netlink.NsFd(int(p.server.Fd()))
	if err := in.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("add veth0: %w", err)
	}
	if err := bringUp(in, net.IPv4(10, 77, 0, 1)); err != nil {
		return nil, err
	}
	there, err := netlink.NewHandleAt(netns.NsHandle(p.server.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer there.Close()
	return p, bringUp(there, net.IPv4(10, 77, 0, 2))
}

func bringUp(h *netlink.Handle, ip net.IP) error {
	veth, err := h.LinkByName("veth0")
	if err != nil {
		return fmt.Errorf("find veth0: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}
	if err := h.AddrAdd(veth, addr); err != nil {
		return fmt.Errorf("add %v to veth0: %w", addr, err)
	}
	if err := h.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set veth0 up: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// newNetns makes a namespace on a thread that is thrown away with its goroutine.
func newNetns() (*os.File, error) {
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
		file, err := os.Open("/proc/thread-self/ns/net")
		made <- result{file, err}
	}()
	r := <-made
	return r.file, r.err
}

func (p *place) close() error {
	var errs []error
	for _, ns := range []*os.File{p.client, p.server} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}
