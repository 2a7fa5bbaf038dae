// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var strangers = Case{
	Name: "strangers", Guarantee: "G2", Modes: allModes, Control: allModes,
	Doc: "two connections with the same addresses, each with one end that is not selected",
	Run: func(e *Env) {
		const server, client = "127.0.0.1:7711", "127.0.0.1:7712"
		other := e.otherNetns()
		var pairs [][2]*Sock
		for _, end := range []struct {
			ns            string
			listen, dials int // sockets from outside of the world; -1: its own
		}{{"", e.outside(""), -1}, {other, -1, e.outside(other)}} {
			own := func(fd int) int {
				if fd < 0 {
					e.must(e.in(end.ns, func() (err error) { fd, err = e.socket(e.config.V4, unix.IPPROTO_TCP); return err }), "open a socket")
					e.own(fd)
				}
				e.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), "SO_REUSEADDR")
				e.must(unix.SetNonblock(fd, e.Mode != Blocking), "O_NONBLOCK")
				return fd
			}
			l := &listener{e: e, fd: own(end.listen), addr: netip.MustParseAddrPort(server)}
			e.must(unix.Bind(l.fd, sockaddr(l.addr)), "bind")
			e.must(unix.Listen(l.fd, 16), "listen")
			c := e.sock("client", own(end.dials))
			e.must(unix.Bind(c.fd, sockaddr(netip.MustParseAddrPort(client))), "bind")
			c.connect(l.addr)
			_, s := couple(c, l.accept())
			// No TIME_WAIT: the next mode uses the same addresses.
			e.must(unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "SO_LINGER")
			l.close()
			pairs = append(pairs, [2]*Sock{c, s})
		}
		for range 3 {
			for i, p := range pairs {
				for _, way := range [][2]*Sock{{p[0], p[1]}, {p[1], p[0]}} {
					e.Say(fmt.Sprintf("%s %d writes", way[0].who, i), way[0].write(1000))
					if way[1].poll(unix.POLLIN, e.patience) == 0 {
						e.Say(fmt.Sprintf("%s %d", way[1].who, i), "nothing came")
						return
					}
					e.Say(fmt.Sprintf("%s %d reads", way[1].who, i), way[1].read(1000))
				}
			}
		}
		for _, p := range pairs {
			e.Say("client closes", p[0].close())
			p[1].close()
		}
	},
}

// outside is a socket that belongs to no cgroup of the suite: a socket is of the
// cgroup in which it was made. A child makes it, there, and passes it.
func (e *Env) outside(ns string) int {
	u, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	e.must(err, "socketpair")
	e.own(u[0])
	var pid int
	err = e.in(ns, func() (err error) {
		pid, err = syscall.ForkExec("/proc/self/exe", []string{"shunt", PeerCommand, "outside", e.config.Outside},
			&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 2, 2, uintptr(u[1])}})
		return err
	})
	unix.Close(u[1]) //nolint:errcheck // the child's
	e.must(err, "start a child outside")
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(u[0], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	e.reap(pid)
	e.must(err, "receive a socket")
	msgs, err := unix.ParseSocketControlMessage(control[:n])
	if err == nil && len(msgs) == 0 {
		err = unix.EPIPE
	}
	e.must(err, "receive a socket from outside")
	fds, err := unix.ParseUnixRights(&msgs[0])
	e.must(err, "receive a socket")
	return e.own(fds[0])
}

// passOutside is that child.
func passOutside(cgroup string) error {
	if err := os.WriteFile(cgroup+"/cgroup.procs", []byte("0"), 0); err != nil {
		return fmt.Errorf("conformance: go to another cgroup: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("conformance: open a socket: %w", err)
	}
	return unix.Sendmsg(3, []byte{0}, unix.UnixRights(fd), nil, 0)
}
