// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

const (
	// TapPatience is how long the kernel half writes for a reader that does not
	// call KeepOn: that long after its death everything is off again.
	TapPatience = 3 * time.Second

	messagesBuffer = 16 << 20  // bytes
	pairsBuffer    = 256 << 10 // bytes
)

// ErrTapped says that another process reads this instance already.
var ErrTapped = errors.New("is read already")

// ErrNoTap says that the instance was loaded by a shunt that had no tap.
var ErrNoTap = errors.New("was loaded by an older shunt, which cannot be tapped")

// EventKind is what an Event tells.
type EventKind string

// A message, or a part of one; a pair that joined; a pair that leaves; a socket
// whose entry goes, which is the last that is heard of it.
const (
	EventMessage EventKind = "message"
	EventJoin    EventKind = "join"
	EventLeave   EventKind = "leave"
	EventClose   EventKind = "close"
)

// Event is what the kernel half writes for a reader.
type Event struct {
	Kind       EventKind
	Monotonic  time.Duration // time, by the clock of bpf_ktime_get_ns
	Cookie     uint64
	PeerCookie uint64 // 0 until the other end joined
	Netns      uint64 // netns cookies
	PeerNetns  uint64
	Local      netip.AddrPort
	Remote     netip.AddrPort
	Active     bool   // this end connected
	Offset     uint64 // bytes that this end had sent before, by any path
	Consumed   uint64 // bytes that this end's application had received
	SndNxt     uint32 // sequence numbers at establishment
	RcvNxt     uint32
	Size       int    // bytes that this event stands for
	Message    int    // bytes of the whole message
	Payload    []byte // the first of Size bytes
	Path       string // a message: short, or why it took the stack
	Why        string // a leave: the reason
	PID        int    // a message: the sending process
	Comm       string // and the name of its thread
	Cgroup     uint64 // IDs of the sockets' cgroups
	PeerCgroup uint64
	Inode      uint64 // of the sockets' files, 0 if not open
	PeerInode  uint64
}

// Lost is what a reader did not get.
type Lost struct {
	Records uint64 // the buffer was full
	Bytes   uint64 // of messages, in those
	Unread  uint64 // bytes of payload that the kernel half could not read
}

// Plus adds two counts.
func (l Lost) Plus(m Lost) Lost {
	return Lost{l.Records + m.Records, l.Bytes + m.Bytes, l.Unread + m.Unread}
}

func (l Lost) minus(m Lost) Lost {
	return Lost{l.Records - m.Records, l.Bytes - m.Bytes, l.Unread - m.Unread}
}

// Tap reads the events of one instance. While it is open, the kernel half
// writes them.
type Tap struct {
	slot    bpfTapReader
	control *ebpf.Map
	lost    *ebpf.Map
	outer   *ebpf.Map
	ring    *ebpf.Map
	reader  *ringbuf.Reader
	ask     bpfTapControl
	before  Lost
	record  ringbuf.Record
	stopped bool
}

// OpenTap reads the messages of the instance pinned in dir: of those
// connections that the filter's hosts and ports select (its other conditions
// are the caller's), at most snaplen bytes of payload of each event.
func OpenTap(dir string, filter TapFilter, snaplen uint32) (*Tap, error) {
	ask := bpfTapControl{Snaplen: snaplen}
	for i, h := range filter.Hosts {
		ask.Host[i] = addrWords(h)
		ask.Hosts++
	}
	for i, p := range filter.Ports {
		ask.Port[i] = p
		ask.Ports++
	}
	return openTap(dir, bpfTapReaderTAP_MESSAGES, messagesBuffer, ask)
}

// OpenPairs reads the joins and leaves of the instance pinned in dir.
func OpenPairs(dir string) (*Tap, error) {
	return openTap(dir, bpfTapReaderTAP_PAIRS, pairsBuffer, bpfTapControl{})
}

func openTap(dir string, slot bpfTapReader, buffer uint32, ask bpfTapControl) (_ *Tap, err error) {
	t := &Tap{slot: slot, ask: ask}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for name, m := range map[string]**ebpf.Map{bpfMapShuntTap: &t.control, bpfMapShuntTapLost: &t.lost, bpfMapShuntTaps: &t.outer} {
		*m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			if _, e := os.Stat(filepath.Join(dir, bpfMapShuntConns)); e == nil {
				return nil, fmt.Errorf("%s %w", filepath.Base(dir), ErrNoTap)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("open %s of %s: %w", name, dir, err)
		}
	}
	t.ring, err = ebpf.NewMap(&ebpf.MapSpec{Name: "shunt_tap_ring", Type: ebpf.RingBuf, MaxEntries: buffer})
	if err != nil {
		return nil, fmt.Errorf("make the buffer: %w", err)
	}
	if t.reader, err = ringbuf.NewReader(t.ring); err != nil {
		return nil, fmt.Errorf("read the buffer: %w", err)
	}
	// Two readers that start at once must not both find the place free.
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer lock.Close() //nolint:errcheck // a directory
	if err := flockFor(lock, TapPatience); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	var there bpfTapControl
	if err := t.control.Lookup(uint32(slot), &there); err != nil {
		return nil, fmt.Errorf("ask who reads %s: %w", dir, err)
	}
	if there.Until > uint64(monotonic()) && alive(there.Owner) {
		return nil, fmt.Errorf("%s %w, by process %d", filepath.Base(dir), ErrTapped, there.Owner)
	}
	if t.before, err = t.lostSoFar(); err != nil {
		return nil, err
	}
	if err := t.outer.Put(uint32(slot), t.ring); err != nil {
		return nil, fmt.Errorf("hand the buffer over: %w", err)
	}
	t.ask.Owner = uint32(os.Getpid())
	return t, t.KeepOn()
}

// flockFor takes a lock that is only ever held for a moment.
func flockFor(f *os.File, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func alive(pid uint32) bool {
	return !errors.Is(unix.Kill(int(pid), 0), unix.ESRCH)
}

// KeepOn tells the kernel half that somebody reads. Call it each second.
func (t *Tap) KeepOn() error {
	if err := t.mine(); err != nil {
		return err
	}
	t.ask.Until = uint64(monotonic()) + uint64(TapPatience)
	if err := t.control.Put(uint32(t.slot), &t.ask); err != nil {
		return fmt.Errorf("keep the tap on: %w", err)
	}
	return nil
}

// mine fails if another reader took the place, as it may after this process
// was stopped for longer than TapPatience.
func (t *Tap) mine() error {
	var there bpfTapControl
	if err := t.control.Lookup(uint32(t.slot), &there); err != nil {
		return fmt.Errorf("ask who reads: %w", err)
	}
	if there.Owner != t.ask.Owner && there.Until > uint64(monotonic()) {
		return fmt.Errorf("%w, by process %d", ErrTapped, there.Owner)
	}
	return nil
}

// Read waits until deadline for the next event; os.ErrDeadlineExceeded if none
// came. The payload is valid until the next call.
func (t *Tap) Read(deadline time.Time) (Event, error) {
	t.reader.SetDeadline(deadline)
	if err := t.reader.ReadInto(&t.record); err != nil {
		return Event{}, err
	}
	return decodeEvent(t.record.RawSample)
}

func decodeEvent(raw []byte) (Event, error) {
	const head = int(unsafe.Sizeof(bpfTapEvent{}))
	if len(raw) < head {
		return Event{}, fmt.Errorf("decode an event: %d bytes, want at least %d", len(raw), head)
	}
	var e bpfTapEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), head), raw)
	if int(e.Captured) > len(raw)-head {
		return Event{}, fmt.Errorf("decode an event: %d bytes of payload in a record of %d", e.Captured, len(raw))
	}
	comm := make([]byte, 0, len(e.Comm))
	for _, c := range e.Comm {
		if c == 0 {
			break
		}
		comm = append(comm, c)
	}
	ev := Event{
		Kind:       eventKinds[bpfTapKind(e.Kind)],
		Monotonic:  time.Duration(e.Time),
		Cookie:     e.Cookie,
		PeerCookie: e.PeerCookie,
		Netns:      e.Netns,
		PeerNetns:  e.PeerNetns,
		Local:      addrPort(e.Tuple.Laddr, e.Tuple.Lport),
		Remote:     addrPort(e.Tuple.Raddr, e.Tuple.Rport),
		Active:     e.Side == uint8(bpfSideSIDE_ACTIVE),
		Offset:     e.Offset,
		Consumed:   e.Consumed,
		SndNxt:     e.SndNxt,
		RcvNxt:     e.RcvNxt,
		Size:       int(e.Size),
		Message:    int(e.Message),
		Payload:    raw[head : head+int(e.Captured)],
		PID:        int(e.Tgid),
		Comm:       string(comm),
		Cgroup:     e.Cgroup,
		PeerCgroup: e.PeerCgroup,
		Inode:      e.Inode,
		PeerInode:  e.PeerInode,
	}
	switch ev.Kind {
	case EventMessage:
		ev.Path = routeNames[bpfRoute(e.Route)]
	case EventLeave:
		ev.Why = leaveNames[bpfLeave(e.Route)]
	}
	return ev, nil
}

var eventKinds = map[bpfTapKind]EventKind{
	bpfTapKindTAP_MESSAGE: EventMessage,
	bpfTapKindTAP_JOIN:    EventJoin,
	bpfTapKindTAP_LEAVE:   EventLeave,
	bpfTapKindTAP_CLOSE:   EventClose,
}

// Lost is what this reader did not get so far.
func (t *Tap) Lost() (Lost, error) {
	now, err := t.lostSoFar()
	return now.minus(t.before), err
}

func (t *Tap) lostSoFar() (sum Lost, err error) {
	var perCPU []bpfTapLost
	if err := t.lost.Lookup(uint32(t.slot), &perCPU); err != nil {
		return sum, fmt.Errorf("read what was lost: %w", err)
	}
	for _, c := range perCPU {
		sum.Records += c.Records
		sum.Bytes += c.Bytes
		sum.Unread += c.Unread
	}
	return sum, nil
}

// Stop switches the kernel half off. What it has written already can be read.
func (t *Tap) Stop() error {
	if t.stopped {
		return nil
	}
	t.stopped = true
	if err := t.mine(); err != nil {
		return err
	}
	if err := t.control.Put(uint32(t.slot), &bpfTapControl{}); err != nil {
		return fmt.Errorf("switch the tap off: %w", err)
	}
	// The kernel half holds the buffer until then; a message on its way keeps it
	// for as long as it takes.
	if err := t.outer.Delete(uint32(t.slot)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take the buffer back: %w", err)
	}
	return nil
}

// Close stops and gives everything back.
func (t *Tap) Close() error {
	err := t.Stop()
	t.close()
	return err
}

func (t *Tap) close() {
	if t.reader != nil {
		t.reader.Close() //nolint:errcheck // nothing was written
	}
	for _, m := range []*ebpf.Map{t.control, t.lost, t.outer, t.ring} {
		if m != nil {
			m.Close() //nolint:errcheck // a handle
		}
	}
}

// addrWords is the inverse of addrPort.
func addrWords(a netip.Addr) (words [4]uint32) {
	b := a.As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return words
}
