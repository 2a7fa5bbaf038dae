// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Count is a number of messages and the bytes in them.
type Count struct {
	Messages uint64 `json:"messages" yaml:"messages"`
	Bytes    uint64 `json:"bytes" yaml:"bytes"`
}

// Stats are totals since the instance was loaded.
type Stats struct {
	Connections uint64            `json:"connections" yaml:"connections"` // with at least one end here
	Joined      uint64            `json:"joined" yaml:"joined"`
	NotJoined   map[string]uint64 `json:"not_joined" yaml:"not_joined"` // by reason; non-zero ones
	Left        map[string]uint64 `json:"left" yaml:"left"`             // pairs that left the map early, by reason
	Redirected  Count             `json:"redirected" yaml:"redirected"` // socket to socket
	Stack       map[string]Count  `json:"stack" yaml:"stack"`           // of joined sockets, through the stack, by reason
	Resets      uint64            `json:"resets" yaml:"resets"`         // closes with unread bytes, told to the peer as RST
	Faults      map[string]uint64 `json:"faults" yaml:"faults"`         // kernel helper calls that failed, by place
	Counters    uint32            `json:"-" yaml:"-"`                   // ID of the kernel's counters: another one, another beginning
}

// Spilled is what took the stack because the receiver's queue was full.
func (s Stats) Spilled() Count { return s.Stack[routeNames[bpfRouteROUTE_SPILL]] }

// StackTotal is what joined sockets sent through the stack, for any reason.
func (s Stats) StackTotal() Count {
	var sum Count
	for _, c := range s.Stack {
		sum.Messages += c.Messages
		sum.Bytes += c.Bytes
	}
	return sum
}

// Conn is one joined socket: one direction of a connection.
type Conn struct {
	Cookie     uint64         `json:"cookie" yaml:"cookie"`
	PeerCookie uint64         `json:"peer_cookie" yaml:"peer_cookie"` // 0 until the other end joined
	Netns      uint64         `json:"netns" yaml:"netns"`             // netns cookie
	Side       string         `json:"side" yaml:"side"`               // active: connected, passive: accepted
	Local      netip.AddrPort `json:"local" yaml:"local"`
	Remote     netip.AddrPort `json:"remote" yaml:"remote"`
	Path       string         `json:"path" yaml:"path"`           // short, or why its last message took the stack
	Left       string         `json:"left,omitempty" yaml:"left"` // why it left or is leaving the map
	AgeSeconds float64        `json:"age_seconds" yaml:"age_seconds"`
	Redirected Count          `json:"redirected" yaml:"redirected"`
	Spilled    Count          `json:"spilled" yaml:"spilled"`
	Stack      Count          `json:"stack" yaml:"stack"` // without the spilled
}

// Names of the kernel half's enums, as they appear in every output.
var (
	sideNames = map[uint8]string{
		uint8(bpfSideSIDE_ACTIVE):  "active",
		uint8(bpfSideSIDE_PASSIVE): "passive",
	}
	refusalNames = map[bpfRefusal]string{
		bpfRefusalREFUSE_REMOTE:     "remote",
		bpfRefusalREFUSE_BLOCKING:   "blocking",
		bpfRefusalREFUSE_PROOF:      "proof",
		bpfRefusalREFUSE_COLLISION:  "collision",
		bpfRefusalREFUSE_FULL:       "table-full",
		bpfRefusalREFUSE_FASTOPEN:   "fastopen",
		bpfRefusalREFUSE_FOREIGN:    "foreign",
		bpfRefusalREFUSE_EXCLUDED:   "excluded",
		bpfRefusalREFUSE_UNSELECTED: "unselected",
		bpfRefusalREFUSE_CLOSED:     "closed",
	}
	routeNames = map[bpfRoute]string{
		bpfRouteROUTE_REDIRECT:   "short",
		bpfRouteROUTE_UNPAIRED:   "unpaired",
		bpfRouteROUTE_UNACCEPTED: "unaccepted",
		bpfRouteROUTE_READER:     "reader-unproven",
		bpfRouteROUTE_GUARD:      "unguarded-device",
		bpfRouteROUTE_ORDER:      "order",
		bpfRouteROUTE_SPILL:      "spill",
		bpfRouteROUTE_PRESSURE:   "memory-pressure",
		bpfRouteROUTE_LEAVING:    "leaving",
		bpfRouteROUTE_SHUTDOWN:   "write-shut",
		bpfRouteROUTE_CLOSING:    "peer-closing",
	}
	leaveNames = map[bpfLeave]string{
		bpfLeaveLEAVE_BLOCKING:  "blocking",
		bpfLeaveLEAVE_SHUTDOWN:  "shutdown",
		bpfLeaveLEAVE_CLOSE:     "close",
		bpfLeaveLEAVE_STREAM:    "stream",
		bpfLeaveLEAVE_SPLICE:    "splice",
		bpfLeaveLEAVE_LOWAT:     "rcvlowat",
		bpfLeaveLEAVE_INQ:       "inq",
		bpfLeaveLEAVE_TIMESTAMP: "timestamp",
		bpfLeaveLEAVE_MMAP:      "mmap",
		bpfLeaveLEAVE_ZEROCOPY:  "zerocopy",
		bpfLeaveLEAVE_ULP:       "ulp",
		bpfLeaveLEAVE_UNLOAD:    "unload",
	}
	faultNames = map[bpfFault]string{
		bpfFaultFAULT_CONN_INSERT: "conn-insert",
		bpfFaultFAULT_SOCK_INSERT: "sock-insert",
		bpfFaultFAULT_SYN_INSERT:  "syn-insert",
		bpfFaultFAULT_PAIR_INSERT: "pair-insert",
		bpfFaultFAULT_CB_FLAGS:    "callback-flags",
		bpfFaultFAULT_EVENT:       "guard-event",
		bpfFaultFAULT_LEAVE:       "leave",
		bpfFaultFAULT_RESET:       "reset",
		bpfFaultFAULT_SNDBUF:      "sndbuf",
		bpfFaultFAULT_EXCLUDE:     "exclude",
		bpfFaultFAULT_READER:      "reader",
	}
)

// Explain says in words what a name in Stats.NotJoined, Stats.Stack or
// Conn.Path means.
func Explain(name string) string {
	if s, ok := explanations[name]; ok {
		return s
	}
	return name
}

var explanations = map[string]string{
	"remote":           "the peer is on another machine or not selected",
	"blocking":         "a blocking socket: only plain TCP keeps signals and MSG_WAITALL right for it (--accept G4 joins it)",
	"proof":            "the ends' sequence numbers do not prove that they belong together",
	"collision":        "another pair used the same addresses and ports at that moment",
	"table-full":       "the table of joined sockets is full",
	"fastopen":         "TCP Fast Open carried data in the SYN",
	"foreign":          "MPTCP, or another sockmap or ULP owns the socket",
	"closed":           "closed before the server's end was there",
	"unselected":       "no end is selected, or one is excluded",
	"unload":           "the instance was being taken out",
	"shutdown":         "one end shut down its write side: plain TCP does the rest",
	"unpaired":         "the other end had not joined yet",
	"unaccepted":       "the server had not accepted the connection yet",
	"reader-unproven":  "the reader was not yet seen in recv (a splice reader never is)",
	"unguarded-device": "the device of the receiver has no reset guard",
	"order":            "earlier bytes in the stack were not read yet",
	"spill":            "the receiver's queue was full",
	"memory-pressure":  "the kernel was short of TCP memory",
	"leaving":          "the pair was leaving the map",
	"write-shut":       "sent after shutdown: the stack answers",
	"peer-closing":     "the peer has shut down or closed",
	"excluded":         "a reader of the same kind was seen in splice(2), see shunt exclusions",
	"stream":           "small writes in one direction: the stack gathers them and is faster",
	"splice":           "the reader uses splice(2), which never sees redirected bytes",
	"rcvlowat":         "the reader uses SO_RCVLOWAT",
	"inq":              "the reader uses TCP_INQ",
	"timestamp":        "one end uses SO_TIMESTAMP or SO_TIMESTAMPING",
	"mmap":             "the reader uses TCP_ZEROCOPY_RECEIVE",
	"ulp":              "kTLS or another ULP is in use",
	"zerocopy":         "the sender uses MSG_ZEROCOPY",
}

// Stats sums the counters of all CPUs and of the live connections. What closes
// while it reads may be missing from Redirected until the next call, nothing is
// ever counted twice: the totals are read first, and the kernel half takes a
// connection off the list before it adds it to them.
func (p *Plane) Stats() (Stats, error) {
	s, _, err := p.Read()
	return s, err
}

// Read returns the totals and the connections that are part of them.
func (p *Plane) Read() (Stats, []Conn, error) {
	const tries = 4 // under a storm of closes there is no better moment to wait for
	info, err := p.coll.Maps[bpfMapShuntStats].Info()
	if err != nil {
		return Stats{}, nil, fmt.Errorf("ask for the counters: %w", err)
	}
	id, _ := info.ID() // 0 on kernels without: all the same
	counters, err := p.counters()
	for try := 1; ; try++ {
		if err != nil {
			return Stats{}, nil, err
		}
		conns, err := p.Conns()
		if err != nil {
			return Stats{}, nil, err
		}
		after, err := p.counters()
		if err != nil {
			return Stats{}, nil, err
		}
		// Nothing closed in between: nothing is missing.
		if try == tries || closed(counters) == closed(after) {
			s := sum(counters, conns)
			s.Counters = uint32(id)
			return s, conns, nil
		}
		counters = after
	}
}

// counters reads the totals of each CPU.
func (p *Plane) counters() ([]bpfStats, error) {
	var perCPU []bpfStats
	if err := p.coll.Maps[bpfMapShuntStats].Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return perCPU, nil
}

// closed is what connections that are closed had redirected.
func closed(perCPU []bpfStats) (sum Count) {
	for _, c := range perCPU {
		sum.Messages += c.Messages[bpfRouteROUTE_REDIRECT]
		sum.Bytes += c.Bytes[bpfRouteROUTE_REDIRECT]
	}
	return sum
}

func sum(perCPU []bpfStats, conns []Conn) Stats {
	s := Stats{NotJoined: map[string]uint64{}, Left: map[string]uint64{}, Stack: map[string]Count{}, Faults: map[string]uint64{}}
	for _, c := range conns {
		s.Redirected.Messages += c.Redirected.Messages
		s.Redirected.Bytes += c.Redirected.Bytes
	}
	for _, c := range perCPU {
		s.Connections += c.Seen
		s.Joined += c.Joined
		s.Resets += c.Resets
		s.Redirected.Messages += c.Messages[bpfRouteROUTE_REDIRECT]
		s.Redirected.Bytes += c.Bytes[bpfRouteROUTE_REDIRECT]
		for route, name := range routeNames {
			if route == bpfRouteROUTE_REDIRECT || c.Messages[route] == 0 {
				continue
			}
			sum := s.Stack[name]
			sum.Messages += c.Messages[route]
			sum.Bytes += c.Bytes[route]
			s.Stack[name] = sum
		}
		for why, name := range refusalNames {
			add(s.NotJoined, name, c.Refused[why])
		}
		for why, name := range leaveNames {
			if why == bpfLeaveLEAVE_CLOSE { // the normal end, not early
				continue
			}
			add(s.Left, name, c.Left[why])
		}
		for place, name := range faultNames {
			add(s.Faults, name, c.Faults[place])
		}
	}
	return s
}

func add(m map[string]uint64, name string, n uint64) {
	if n > 0 {
		m[name] += n
	}
}

// Conns lists the sockets known to the instance, oldest first.
func (p *Plane) Conns() ([]Conn, error) {
	var (
		cookie uint64
		c      bpfConn
		list   []Conn
	)
	// Where the kernel no longer finds the last key it starts again: that
	// connection closed meanwhile. The later sight of the others counts.
	index := map[uint64]int{}
	now := time.Duration(monotonic())
	it := p.coll.Maps[bpfMapShuntConns].Iterate()
	for it.Next(&cookie, &c) {
		conn := Conn{
			Cookie:     cookie,
			PeerCookie: c.PeerCookie,
			Netns:      c.Netns,
			Side:       sideNames[c.Side],
			Local:      addrPort(c.Tuple.Laddr, c.Tuple.Lport),
			Remote:     addrPort(c.Tuple.Raddr, c.Tuple.Rport),
			Path:       routeNames[bpfRoute(c.Route)],
			Left:       leaveNames[bpfLeave(c.Leaving)],
			AgeSeconds: (now - time.Duration(c.Born)).Seconds(),
			Redirected: Count{c.RedirectedMsgs, c.RedirectedBytes},
			Spilled:    Count{c.SpilledMsgs, c.SpilledBytes},
			Stack:      Count{c.StackMsgs, c.StackBytes},
		}
		if i, again := index[cookie]; again {
			list[i] = conn
			continue
		}
		index[cookie] = len(list)
		list = append(list, conn)
	}
	// Aborted: entries went while it read, as live connections do. The list is
	// a sample either way.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].AgeSeconds > list[j].AgeSeconds })
	return list, nil
}

// addrPort reads an address as bpf/maps.h stores it: network order words,
// IPv4 as IPv4-mapped.
func addrPort(words [4]uint32, port uint16) netip.AddrPort {
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), port)
}

// monotonic is the clock of bpf_ktime_get_ns, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
