// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/kernel"
)

// netns is a network namespace that lives as long as the test's handle of it.
type netns struct {
	t    *testing.T
	file *os.File
	nl   *netlink.Handle
}

func (n *netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// newNetns makes a namespace with its loopback up.
func newNetns(t *testing.T) *netns {
	t.Helper()
	need(t)
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("make a network namespace: %v", r.err)
	}
	n := &netns{t: t, file: r.file}
	t.Cleanup(func() { n.file.Close() })
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(r.file.Fd()), unix.NETLINK_ROUTE) // the others need modules
	if err != nil {
		t.Fatal(err)
	}
	n.nl = nl
	t.Cleanup(nl.Close)
	n.up("lo")
	return n
}

func (n *netns) link(name string) netlink.Link {
	n.t.Helper()
	l, err := n.nl.LinkByName(name)
	if err != nil {
		n.t.Fatalf("find %s: %v", name, err)
	}
	return l
}

func (n *netns) up(name string) {
	n.t.Helper()
	if err := n.nl.LinkSetUp(n.link(name)); err != nil {
		n.t.Fatalf("set %s up: %v", name, err)
	}
}

func (n *netns) sysctl(path, value string) {
	n.t.Helper()
	err := kernel.InNetns(n.path(), func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
	if err != nil {
		n.t.Fatal(err)
	}
}

// newVeth makes two namespaces, joined by a veth pair with these addresses.
func newVeth(t *testing.T, a, b string) (client, server *netns) {
	t.Helper()
	client, server = newNetns(t), newNetns(t)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "veth0"})
	veth.PeerName = "veth0"
	veth.PeerNamespace = netlink.NsFd(int(server.file.Fd()))
	if err := client.nl.LinkAdd(veth); err != nil {
		t.Fatalf("add a veth pair: %v", err)
	}
	for n, prefix := range map[*netns]string{client: a, server: b} {
		p := netip.MustParsePrefix(prefix)
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD,
		}
		if err := n.nl.AddrAdd(n.link("veth0"), addr); err != nil {
			t.Fatalf("add %v: %v", p, err)
		}
		n.up("veth0")
	}
	return client, server
}

// neighbour pins the link address of a neighbour: another's true one, or, with
// nil, one that nobody has, so that what is sent there is lost.
func (n *netns) neighbour(ip string, owner *netns) {
	n.t.Helper()
	mac, err := net.ParseMAC("02:77:00:00:00:99")
	if err != nil {
		n.t.Fatal(err)
	}
	if owner != nil {
		mac = owner.link("veth0").Attrs().HardwareAddr
	}
	err = n.nl.NeighSet(&netlink.Neigh{
		LinkIndex: n.link("veth0").Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(ip), HardwareAddr: mac,
	})
	if err != nil {
		n.t.Fatalf("set neighbour %s: %v", ip, err)
	}
}
