// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PeerCommand is the first argument with which the suite starts its own binary;
// whoever embeds this package passes the arguments after it to [PeerMain].
const PeerCommand = "conformance-peer"

// workerConfig is what a worker has to know of its world.
type workerConfig struct {
	V4, V6      netip.Addr // where servers listen
	ServerNetns string     // a path; empty: the worker's own
	Outside     string     // a cgroup that no world is in
	Patience    time.Duration
	Quiet       time.Duration
}

// order is a case to run, answers what came of it, one line each.
type order struct {
	Case        string
	Mode        Mode
	Connections int
}

type answer struct {
	Say       string
	StopAgent bool // and tell when it is done
	Done      bool
}

// init keeps a worker on its first thread: whoever looks for the network namespace
// of a process (/proc/PID/ns/net) sees that of the first one.
func init() {
	if len(os.Args) > 1 && os.Args[1] == PeerCommand {
		runtime.LockOSThread()
	}
}

// PeerMain is a process of the suite: "worker CONFIG" carries out the cases that
// it reads from in; "wait" does nothing until in ends; the others are the children
// of cases, with a socket as their descriptor 3.
func PeerMain(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("conformance: want a role")
	}
	switch args[0] {
	case "worker":
		if len(args) != 2 {
			return errors.New("conformance: want worker CONFIG")
		}
		return work(args[1], in, out)
	case "wait":
		_, err := io.Copy(io.Discard, in)
		return err
	}
	if args[0] == "outside" && len(args) == 2 {
		return passOutside(args[1])
	}
	return child(args[0])
}

func work(config string, in io.Reader, out io.Writer) error {
	var c workerConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return fmt.Errorf("conformance: read the worker's configuration: %w", err)
	}
	enc := json.NewEncoder(out)
	say := func(a answer) {
		if enc.Encode(a) != nil { // nobody listens any more
			os.Exit(1)
		}
	}
	// Not PR_SET_PDEATHSIG, which goes by the thread that started this process: the
	// end of the pipe says that nobody waits for this case any more.
	lines := make(chan string)
	go func() {
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
		os.Exit(0)
	}()
	for line := range lines {
		var o order
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return fmt.Errorf("conformance: read an order: %w", err)
		}
		e := &Env{
			Mode: o.Mode, Connections: o.Connections, config: c, patience: c.Patience, quiet: c.Quiet,
			say: func(line string) { say(answer{Say: line}) },
			fds: map[int]bool{}, children: map[int]bool{},
			stopAgent: func() {
				say(answer{StopAgent: true})
				<-lines
			},
		}
		if o.Case == warmUp.Name {
			e.run(warmUp)
		} else if found, ok := find(o.Case); ok {
			e.run(found)
		} else {
			return fmt.Errorf("conformance: no case %q", o.Case)
		}
		say(answer{Done: true})
	}
	return nil
}

// warmUp is what a world does first, until its devices are guarded.
var warmUp = Case{Name: "warm-up", Run: func(e *Env) {
	c, s := e.pair()
	for range warmUpPings {
		ping(c, s)
	}
}}

const warmUpPings = 20

// spawn starts a child of the case that holds the descriptor as its own 3.
func (e *Env) spawn(role string, fd int) int {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"shunt", PeerCommand, role},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 2, 2, uintptr(fd)}})
	e.must(err, "start a child")
	e.children[pid] = true
	return pid
}

// reap waits for the end of a child.
func (e *Env) reap(pid int) {
	delete(e.children, pid)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// kill ends a child as nothing else can.
func (e *Env) kill(pid int) {
	e.must(unix.Kill(pid, unix.SIGKILL), "kill a child")
	e.reap(pid)
}

// child is a process that a case started, with a socket as descriptor 3, which it
// uses with poll whatever its mode.
func child(role string) error {
	const fd = 3
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("conformance: ask for the parent's death: %w", err)
	}
	ready := func(events int16) error {
		p := []unix.PollFd{{Fd: fd, Events: events}}
		_, err := unix.Poll(p, int((10 * time.Second).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			return nil
		}
		if err == nil && p[0].Revents == 0 {
			err = unix.ETIMEDOUT
		}
		return err
	}
	buf := make([]byte, 64<<10)
	switch role {
	case "hold": // until it is killed
		time.Sleep(time.Minute)
	case "echo": // until the end, which it answers with its own
		for {
			if err := ready(unix.POLLIN); err != nil {
				return err
			}
			n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return err
			}
			for at := 0; at < n; {
				m, err := unix.SendmsgN(fd, buf[at:n], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
				switch {
				case err == nil:
					at += m
				case errors.Is(err, unix.EAGAIN):
					if err := ready(unix.POLLOUT); err != nil {
						return err
					}
				case !errors.Is(err, unix.EINTR):
					return err
				}
			}
		}
	case "source": // stream 1 for as long as it lives
		for offset := int64(0); ; {
			m, err := unix.SendmsgN(fd, piece(childStream, offset, 16<<10), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				offset += int64(m)
			case errors.Is(err, unix.EAGAIN):
				if err := ready(unix.POLLOUT); err != nil {
					return err
				}
			case !errors.Is(err, unix.EINTR):
				return err
			}
		}
	case "sink": // reads for as long as it lives
		for {
			if err := ready(unix.POLLIN); err != nil {
				return err
			}
			n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return err
			}
		}
	}
	return fmt.Errorf("conformance: no role %q", role)
}

// childStream is what a "source" sends.
const childStream = 1 << 20
