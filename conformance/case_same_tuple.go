// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var sameTuple = Case{
	Name: "same-tuple", Guarantee: "G2", Modes: allModes,
	Doc: "two connections with the same addresses and ports in two namespaces",
	Run: func(e *Env) {
		other := e.otherNetns()
		var pairs [][2]*Sock
		for _, ns := range []string{"", other} {
			l := e.listenOn(ns, netip.MustParseAddrPort("127.0.0.1:7701"), unix.IPPROTO_TCP, 16, nil)
			c := e.dialFrom(ns, l.addr, unix.IPPROTO_TCP, func(fd int) error {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
					return err
				}
				return unix.Bind(fd, sockaddr(netip.MustParseAddrPort("127.0.0.1:7702")))
			})
			_, s := couple(c, l.accept())
			// No TIME_WAIT: the next mode uses the same addresses.
			e.must(unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "SO_LINGER")
			pairs = append(pairs, [2]*Sock{c, s})
			l.close()
		}
		for range 5 {
			for i, p := range pairs {
				b := make([]byte, 2000)
				e.Say(fmt.Sprintf("client %d writes", i), p[0].write(1000))
				if p[1].poll(unix.POLLIN, e.patience) == 0 {
					e.Say(fmt.Sprintf("server %d", i), "nothing came")
					return
				}
				n, err := p[1].recv(b)
				e.Say(fmt.Sprintf("server %d reads", i), moved(n, err)+", "+p[1].match(b[:max(0, n)]))
			}
		}
		for _, p := range pairs {
			e.Say("client closes", p[0].close())
			p[1].close()
		}
	},
}

// otherNetns is the path of a network namespace that is not the worker's.
func (e *Env) otherNetns() string {
	if e.config.ServerNetns != "" {
		return e.config.ServerNetns
	}
	fd := make(chan int, 1)
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		err := unix.Unshare(unix.CLONE_NEWNET)
		var n int
		if err == nil {
			n, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		fd <- n
		made <- err
	}()
	n := <-fd
	e.must(<-made, "make a network namespace")
	e.own(n)
	h, err := netlink.NewHandleAt(netns.NsHandle(n))
	e.must(err, "open netlink")
	defer h.Close()
	lo, err := h.LinkByName("lo")
	e.must(err, "find lo")
	e.must(h.LinkSetUp(lo), "set lo up")
	return fmt.Sprintf("/proc/self/fd/%d", n)
}
