// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/pcapng"
)

const (
	tapTick  = time.Second           // how often a tap says that it lives, and looks for new instances
	tapSlice = 20 * time.Millisecond // how long to wait for an event
	// How long one busy instance may keep the others waiting: well below tapTick.
	tapTurn  = 100 * time.Millisecond
	tapFlush = 200 * time.Millisecond // how long a packet waits in memory
	// What is remembered of connections whose end was not seen must not pile up.
	maxRemembered = 1 << 17
)

// TapOptions of Tap.
type TapOptions struct {
	Filter   accel.TapFilter
	Snaplen  uint32 // payload bytes kept of each packet
	Count    uint64 // packets with payload after which it ends; 0: no end
	Instance string // only this one; "": all
	Version  string // of the program, for the file
	Ready    func(instances int)
}

// TapSummary is what a tap did.
type TapSummary struct {
	Packets      uint64 // with payload, written
	Bytes        uint64 // of payload that they stand for
	Cut          uint64 // packets of which only the beginning was kept
	Dropped      uint64 // records that did not fit into the buffer
	DroppedBytes uint64 // bytes of messages in those
	Unread       uint64 // bytes of payload that could not be read
	Connections  int
}

// reading is one instance that is read.
type reading struct {
	tap    *accel.Tap
	wire   *accel.Wire
	name   string
	ifaces map[uint64]int // by netns cookie
}

// readings are all loaded instances, those included that are loaded later.
type readings struct {
	make  func(dir string) (*accel.Tap, error)
	all   map[string]*reading
	only  string // name of the only instance to read; "": all
	ready func(instances int)
	tick  time.Time
	clock time.Duration // wall clock minus monotonic clock
	lost  accel.Lost    // by instances that are gone
}

// look opens the instances that are not open yet, and keeps the others on.
func (r *readings) look() (err error) {
	r.tick = time.Now().Add(tapTick)
	r.clock = clockOffset()
	entries, err := os.ReadDir(sessionPin)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for instances: %w", err)
	}
	var refused error
	there := map[string]bool{}
	defer func() {
		for name := range r.all {
			if !there[name] { // was taken down; what it wrote was read before
				err = errors.Join(err, r.drop(name))
			}
		}
	}()
	for _, e := range entries {
		name := e.Name()
		if r.only != "" && name != r.only {
			continue
		}
		there[name] = true
		if in, known := r.all[name]; known && in == nil {
			continue // said already
		} else if known {
			if err := in.tap.KeepOn(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			continue
		}
		tap, err := r.make(filepath.Join(sessionPin, name))
		if errors.Is(err, os.ErrNotExist) { // just made, or just gone
			continue
		}
		if errors.Is(err, accel.ErrNoTap) || errors.Is(err, accel.ErrTapped) {
			slog.Warn("not every instance can be read", "err", err)
			r.all[name] = nil
			refused = err
			continue
		}
		if err != nil {
			return err
		}
		r.all[name] = &reading{tap: tap, wire: accel.NewWire(), name: name, ifaces: map[uint64]int{}}
	}
	if r.ready == nil {
		return nil
	}
	// There is something, but not for us. An older instance alone is no reason
	// to end: the next one can be read.
	if r.open() == 0 && refused != nil && (r.only != "" || errors.Is(refused, accel.ErrTapped)) {
		return refused
	}
	if r.only != "" && !there[r.only] {
		return fmt.Errorf("no instance %s is loaded; see shunt status", r.only)
	}
	r.ready(r.open())
	r.ready = nil
	return nil
}

// drop closes one instance's reader and keeps what it lost.
func (r *readings) drop(name string) error {
	in := r.all[name]
	delete(r.all, name)
	if in == nil {
		return nil
	}
	l, err := in.tap.Lost()
	r.lost = r.lost.Plus(l)
	return errors.Join(err, in.tap.Close())
}

// clockOffset is what has to be added to bpf_ktime_get_ns for the wall clock.
func clockOffset() time.Duration {
	var mono, wall unix.Timespec
	best, offset := time.Duration(1<<62), time.Duration(0)
	for range 5 { // the try that was interrupted least
		var after unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &wall) != nil ||
			unix.ClockGettime(unix.CLOCK_MONOTONIC, &after) != nil {
			continue
		}
		if took := time.Duration(after.Nano() - mono.Nano()); took < best {
			best, offset = took, time.Duration(wall.Nano()-(mono.Nano()+after.Nano())/2)
		}
	}
	return offset
}

func (r *readings) wall(monotonic time.Duration) time.Time {
	return time.Unix(0, int64(monotonic+r.clock))
}

// run hands events to f until ctx ends, f asks for the end with errEnough, or
// something fails. idle is called when nothing came for a moment. After the end
// what was written already is still handed over.
func (r *readings) run(ctx context.Context, f func(*reading, accel.Event) error, idle func() error) (err error) {
	defer func() {
		for name := range r.all {
			err = errors.Join(err, r.drop(name))
		}
	}()
	for ctx.Err() == nil {
		if time.Now().After(r.tick) {
			if err := r.look(); err != nil {
				return err
			}
		}
		if err := r.drain(tapSlice, f); err != nil {
			return enough(err)
		}
		if err := idle(); err != nil {
			return err
		}
	}
	for _, in := range r.all {
		if in != nil {
			if err := in.tap.Stop(); err != nil {
				return err
			}
		}
	}
	return enough(r.drain(0, f))
}

var errEnough = errors.New("enough")

func enough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// drain reads each instance until it is empty or had its share, and waits for
// at most `wait` in all.
func (r *readings) drain(wait time.Duration, f func(*reading, accel.Event) error) error {
	open := r.open()
	if open == 0 {
		time.Sleep(wait)
		return nil
	}
	for _, in := range r.all {
		if in == nil {
			continue
		}
		for turn := time.Now().Add(tapTurn); time.Now().Before(turn); {
			e, err := in.tap.Read(time.Now().Add(wait / time.Duration(open)))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("read %s: %w", in.name, err)
			}
			if err := f(in, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// open counts the instances that are read.
func (r *readings) open() (n int) {
	for _, in := range r.all {
		if in != nil {
			n++
		}
	}
	return n
}

// Tap writes the messages of every loaded instance to w as pcapng until ctx
// ends or opts.Count is reached.
func Tap(ctx context.Context, opts TapOptions, w io.Writer) (TapSummary, error) {
	var sum TapSummary
	out := bufio.NewWriterSize(w, 1<<20)
	file, err := pcapng.NewWriter(out, "shunt "+opts.Version)
	if err != nil {
		return sum, fmt.Errorf("write the capture: %w", err)
	}
	r := &readings{all: map[string]*reading{}, only: opts.Instance, ready: opts.Ready, make: func(dir string) (*accel.Tap, error) {
		return accel.OpenTap(dir, opts.Filter, opts.Snaplen)
	}}
	names := newNames()
	selected := map[uint64]bool{} // cookies, both of a connection
	flushed := time.Now()
	err = r.run(ctx, func(in *reading, e accel.Event) error {
		if e.Kind == accel.EventClose {
			in.wire.Forget(e.Cookie)
			names.forget(e.Cookie)
			delete(selected, e.Cookie)
			return nil
		}
		yes, known := selected[e.Cookie]
		if !known || !yes && e.PID == opts.Filter.PID && opts.Filter.PID != 0 {
			if yes = names.match(opts.Filter, e); yes {
				sum.Connections++
			}
			if len(selected) >= maxRemembered {
				clear(selected)
			}
			selected[e.Cookie] = yes
			if e.PeerCookie != 0 {
				selected[e.PeerCookie] = yes
			}
		}
		if !yes {
			return nil
		}
		netns := e.Netns
		if !e.Active && e.PeerNetns != 0 {
			netns = e.PeerNetns
		}
		iface, ok := in.ifaces[netns]
		if !ok {
			var err error
			iface, err = file.AddInterface(pcapng.LinkRaw, 0, in.name, fmt.Sprintf("accelerated connections made in the network namespace with cookie %d", netns))
			if err != nil {
				return fmt.Errorf("write the capture: %w", err)
			}
			in.ifaces[netns] = iface
		}
		at := r.wall(e.Monotonic)
		comment := names.comment(e)
		err := in.wire.Message(e, func(p accel.Packet) error {
			text := comment
			if p.Payload == 0 {
				text = "synthesized by shunt: the capture of this connection begins here"
			} else {
				sum.Packets++
				sum.Bytes += uint64(p.Payload)
				if len(p.Data) < p.Length {
					sum.Cut++
				}
			}
			return file.Packet(iface, at, p.Data, p.Length, text)
		})
		if err != nil {
			return fmt.Errorf("write the capture: %w", err)
		}
		if opts.Count > 0 && sum.Packets >= opts.Count {
			return errEnough
		}
		if time.Since(flushed) > tapFlush {
			flushed = time.Now()
			return out.Flush()
		}
		return nil
	}, func() error {
		flushed = time.Now()
		return out.Flush()
	})
	sum.Dropped, sum.DroppedBytes, sum.Unread = r.lost.Records, r.lost.Bytes, r.lost.Unread
	if e := out.Flush(); e != nil && err == nil {
		err = fmt.Errorf("write the capture: %w", e)
	}
	return sum, err
}

// PairEvent is a join or a leave of a pair, seen from its connecting end.
type PairEvent struct {
	Time     time.Time      `json:"time"`
	Event    string         `json:"event"` // join, leave
	Local    netip.AddrPort `json:"local"`
	Remote   netip.AddrPort `json:"remote"`
	Process  string         `json:"process"` // that has the connecting end open: name[pid]
	Peer     string         `json:"peer"`    // that has the accepting end open, once it is accepted
	Reason   string         `json:"reason,omitempty"`
	Bytes    uint64         `json:"bytes"` // sent by this end up to then
	Cgroup   string         `json:"cgroup"`
	Instance string         `json:"instance"`
}

// Follow hands over the joins and leaves of every loaded instance until ctx
// ends, after it has called ready. It returns how many were lost.
func Follow(ctx context.Context, ready func(instances int), f func(PairEvent) error) (lost uint64, err error) {
	r := &readings{all: map[string]*reading{}, ready: ready, make: accel.OpenPairs}
	names := newNames()
	left := map[uint64]bool{} // cookies of pairs whose leave was told
	err = r.run(ctx, func(in *reading, e accel.Event) error {
		reason := e.Why
		switch e.Kind {
		case accel.EventJoin:
			delete(left, e.Cookie)
			delete(left, e.PeerCookie)
		case accel.EventClose: // without having left: reset, or given up by the kernel
			told := left[e.Cookie]
			delete(left, e.Cookie)
			if told || e.PeerCookie == 0 {
				names.forget(e.Cookie)
				return nil
			}
			left[e.PeerCookie] = true
			reason = "reset"
		case accel.EventLeave:
			left[e.Cookie], left[e.PeerCookie] = true, true
		}
		p := PairEvent{
			Time: r.wall(e.Monotonic), Event: "leave", Local: e.Local, Remote: e.Remote, Reason: reason,
			Process: names.process(e.Cookie, e.Inode, e.Cgroup), Peer: names.process(e.PeerCookie, e.PeerInode, e.PeerCgroup),
			Bytes: e.Offset, Cgroup: names.cgroup(e.Cgroup), Instance: in.name,
		}
		if e.Kind == accel.EventJoin {
			p.Event = "join"
		}
		if !e.Active {
			p.Local, p.Remote, p.Process, p.Peer = p.Remote, p.Local, p.Peer, p.Process
			p.Bytes = e.Consumed
		}
		if e.Kind == accel.EventClose {
			names.forget(e.Cookie)
		}
		return f(p)
	}, func() error { return nil })
	return r.lost.Records, err
}

// names says who is who: cgroups by ID, the processes that have a socket open.
type names struct {
	mount   string
	cgroups map[uint64]string
	holders map[uint64]holder // by socket cookie
}

type holder struct {
	name  string
	again time.Time // of a socket without a name: when to look again
}

func newNames() *names {
	n := &names{cgroups: map[uint64]string{}, holders: map[uint64]holder{}}
	if mount, err := kernel.Cgroup2(); err == nil {
		n.mount = mount
	}
	return n
}

func (n *names) forget(cookie uint64) { delete(n.holders, cookie) }

// cgroup finds the path of a cgroup, from the root of the hierarchy. The ID is
// the inode number of its directory.
func (n *names) cgroup(id uint64) string {
	if id == 0 {
		return "?"
	}
	if path, ok := n.cgroups[id]; ok {
		return path
	}
	filepath.WalkDir(n.mount, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // the function returns none
		if err != nil || !d.IsDir() {
			return nil
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			n.cgroups[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(path, n.mount), "/")
		}
		return nil
	})
	if _, ok := n.cgroups[id]; !ok { // gone already
		n.cgroups[id] = fmt.Sprintf("cgroup ID %d", id)
	}
	return n.cgroups[id]
}

// process names the first process of the cgroup that has the socket open. A
// socket may have been passed on to another cgroup: then it has no name here.
func (n *names) process(cookie, inode, cgroup uint64) string {
	if h, ok := n.holders[cookie]; ok && (h.name != "" || time.Now().Before(h.again)) {
		return h.name
	}
	if inode == 0 || cookie == 0 {
		return ""
	}
	name := ""
	if path := n.cgroup(cgroup); strings.HasPrefix(path, "/") {
		f, err := os.Open(filepath.Join(n.mount, path, "cgroup.procs"))
		if err != nil {
			return ""
		}
		defer f.Close() //nolint:errcheck // read only
		for sc := bufio.NewScanner(f); sc.Scan() && name == ""; {
			if pid, err := strconv.Atoi(sc.Text()); err == nil && pid > 0 && holds(pid, inode) {
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) //nolint:errcheck // it may have ended: the number alone, then
				name = fmt.Sprintf("%s[%d]", strings.TrimSpace(string(comm)), pid)
			}
		}
	}
	if len(n.holders) >= maxRemembered {
		clear(n.holders)
	}
	n.holders[cookie] = holder{name, time.Now().Add(tapTick)}
	return name
}

// holds reports whether a process has the socket with that inode open.
func holds(pid int, inode uint64) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // a directory
	fds, err := f.Readdirnames(-1)
	if err != nil {
		return false
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd)); err == nil && to == want {
			return true
		}
	}
	return false
}

// match decides about the conditions that the kernel half does not know.
func (n *names) match(f accel.TapFilter, e accel.Event) bool {
	if f.PID != 0 && e.PID != f.PID && !(e.Inode != 0 && holds(f.PID, e.Inode)) && !(e.PeerInode != 0 && holds(f.PID, e.PeerInode)) {
		return false
	}
	return f.Cgroup == "" || f.InCgroup(n.cgroup(e.Cgroup)) || e.PeerCgroup != 0 && f.InCgroup(n.cgroup(e.PeerCgroup))
}

// comment says what a packet cannot.
func (n *names) comment(e accel.Event) string {
	to := n.process(e.PeerCookie, e.PeerInode, e.PeerCgroup)
	if to != "" {
		to = " to " + to
	}
	path := "socket to socket"
	if e.Path != "short" {
		path = "through the stack: " + e.Path
	}
	return fmt.Sprintf("%s[%d]%s, cgroup %s, %s, message of %d bytes", e.Comm, e.PID, to, n.cgroup(e.Cgroup), path, e.Message)
}
