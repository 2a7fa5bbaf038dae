// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseTapFilter(t *testing.T) {
	addr := netip.MustParseAddr
	for text, want := range map[string]TapFilter{
		"":                                   {},
		"port 6379":                          {Ports: []uint16{6379}},
		"port 1 and port 65535":              {Ports: []uint16{1, 65535}},
		"host 10.77.0.1":                     {Hosts: []netip.Addr{addr("10.77.0.1")}},
		"host ::ffff:10.77.0.1":              {Hosts: []netip.Addr{addr("10.77.0.1")}},
		"pid 7 and  host fd77::1 and port 2": {PID: 7, Hosts: []netip.Addr{addr("fd77::1")}, Ports: []uint16{2}},
		"cgroup /a/b/":                       {Cgroup: "/a/b"},
	} {
		got, err := ParseTapFilter(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
	for text, says := range map[string]string{
		"port":                         `nothing after "port"`,
		"port 0":                       "from 1 to 65535",
		"port 65536":                   "from 1 to 65535",
		"port http":                    "from 1 to 65535",
		"port 1 and":                   "the end, where a condition should be",
		"port 1 or port 2":             `"or" where "and" should be`,
		"port 1 port 2":                `"port" where "and" should be`,
		"port 1 and port 2 and port 3": "only two ports",
		"host 1.2.3":                   "an IPv4 or IPv6 address",
		"host fe80::1%eth0":            "without a zone",
		"host localhost":               "an IPv4 or IPv6 address",
		"pid -1":                       "the number of a process",
		"pid 1 and pid 2":              "only one pid",
		"cgroup a":                     "from the root",
		"cgroup /a and cgroup /b":      "only one cgroup",
		"tcp port 1":                   `unknown condition "tcp"`,
		"not port 1":                   `unknown condition "not"`,
	} {
		if f, err := ParseTapFilter(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, error %v, want one that says %q", text, f, err, says)
		}
	}
}

func TestInCgroup(t *testing.T) {
	for _, c := range []struct {
		filter, path string
		want         bool
	}{
		{"", "/a", true}, {"/", "/a", true}, {"/a", "/a", true}, {"/a", "/a/b", true},
		{"/a", "/ab", false}, {"/a/b", "/a", false},
	} {
		if got := (TapFilter{Cgroup: c.filter}).InCgroup(c.path); got != c.want {
			t.Errorf("cgroup %q: %q is %v", c.filter, c.path, got)
		}
	}
}

// parsed is a packet as a reader that knows nothing of Wire sees it.
type parsed struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    byte
	payload  []byte
	length   int
}

// onesSum is RFC 1071 as the RFC writes it, one word at a time.
func onesSum(b []byte) uint16 {
	var sum uint32
	for i := range b {
		if i%2 == 0 {
			sum += uint32(b[i]) << 8
		} else {
			sum += uint32(b[i])
		}
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// parse checks lengths and, of a packet that is whole, checksums.
func parse(t *testing.T, p Packet) parsed {
	t.Helper()
	var (
		r             parsed
		src, dst, tcp []byte
	)
	b := p.Data
	switch b[0] >> 4 {
	case 4:
		if n := int(binary.BigEndian.Uint16(b[2:])); n != p.Length {
			t.Errorf("IPv4 length %d, want %d", n, p.Length)
		}
		if onesSum(b[:20]) != 0xffff {
			t.Errorf("IPv4 header checksum is wrong: % x", b[:20])
		}
		src, dst, tcp = b[12:16], b[16:20], b[20:]
	case 6:
		if n := int(binary.BigEndian.Uint16(b[4:])); n+40 != p.Length {
			t.Errorf("IPv6 length %d, want %d", n, p.Length-40)
		}
		src, dst, tcp = b[8:24], b[24:40], b[40:]
	default:
		t.Fatalf("IP version %d", b[0]>>4)
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	r.from = netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp))
	r.to = netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:]))
	r.seq, r.ack, r.flags = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]), tcp[13]
	head := int(tcp[12]>>4) * 4
	r.payload, r.length = tcp[head:], p.Length-(len(b)-len(tcp))-head
	if r.length != p.Payload {
		t.Errorf("%d bytes of payload, the packet says %d", r.length, p.Payload)
	}
	if len(b) == p.Length {
		pseudo := bytes.Join([][]byte{src, dst, {0, 0, 0, 6}, binary.BigEndian.AppendUint32(nil, uint32(len(tcp)))}, nil)
		if onesSum(append(pseudo, tcp...)) != 0xffff {
			t.Errorf("TCP checksum of %v to %v is wrong", r.from, r.to)
		}
	}
	return r
}

func collect(t *testing.T, w *Wire, e Event) (list []parsed) {
	t.Helper()
	if err := w.Message(e, func(p Packet) error {
		r := parse(t, p)
		r.payload = bytes.Clone(r.payload)
		list = append(list, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWire(t *testing.T) {
	for _, c := range []struct{ name, client, server string }{
		{"IPv4", "127.0.0.1:40001", "127.0.0.1:80"},
		{"IPv6", "[fd77::1]:40001", "[fd77::2]:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.server)
			random := rand.NewChaCha8([32]byte{7})
			payload := func(n int) []byte {
				b := make([]byte, n)
				random.Read(b) //nolint:errcheck // never fails
				return b
			}
			// Sequence numbers about to wrap.
			const clientNxt, serverNxt = 0xfffffff0, 0x80000000
			ask := Event{Kind: EventMessage, Cookie: 1, PeerCookie: 2, Local: client, Remote: server, Active: true,
				SndNxt: clientNxt, RcvNxt: serverNxt, Size: 99, Payload: payload(99)}
			answer := Event{Kind: EventMessage, Cookie: 2, PeerCookie: 1, Local: server, Remote: client,
				SndNxt: serverNxt, RcvNxt: clientNxt, Consumed: 99, Size: 150_001, Payload: payload(150_001)}
			w := NewWire()
			first := collect(t, w, ask)
			if len(first) != 4 {
				t.Fatalf("%d packets, want a handshake and the message", len(first))
			}
			for i, want := range []parsed{
				{client, server, clientNxt - 1, 0, flagSYN, nil, 0},
				{server, client, serverNxt - 1, clientNxt, flagSYN | flagACK, nil, 0},
				{client, server, clientNxt, serverNxt, flagACK, nil, 0},
				{client, server, clientNxt, serverNxt, flagPSH | flagACK, ask.Payload, 99},
			} {
				got := first[i]
				if got.from != want.from || got.to != want.to || got.seq != want.seq || got.ack != want.ack || got.flags != want.flags ||
					got.length != want.length || !bytes.Equal(got.payload, want.payload) {
					t.Errorf("packet %d is %+v, want %+v", i, got, want)
				}
			}
			// Larger than a packet can be: cut, and continuous.
			var stream []byte
			seq := uint32(serverNxt)
			for _, p := range collect(t, w, answer) {
				if p.seq != seq || p.ack != 99+clientNxt-1<<32 || p.from != server {
					t.Errorf("seq %#x ack %#x from %v, want %#x %#x", p.seq, p.ack, p.from, seq, uint32(99+clientNxt-1<<32))
				}
				seq += uint32(p.length)
				stream = append(stream, p.payload...)
			}
			if !bytes.Equal(stream, answer.Payload) {
				t.Errorf("%d bytes that are not the %d sent", len(stream), len(answer.Payload))
			}
			// Cut to a snap length: the next one goes on after what was there.
			ask.Offset, ask.Consumed, ask.Size, ask.Payload = 99, 150_001, 5000, payload(10)
			cut := collect(t, w, ask)
			if len(cut) != 1 || cut[0].length != 5000 || len(cut[0].payload) != 10 || cut[0].seq != 83 {
				t.Errorf("cut packet: %+v", cut)
			}
			// A reader that is counted late takes no acknowledgement back.
			ask.Offset, ask.Consumed, ask.Size, ask.Payload = 5099, 0, 1, payload(1)
			if late := collect(t, w, ask); late[0].ack != serverNxt+150_001 {
				t.Errorf("the acknowledgement went to %#x", late[0].ack)
			}
			w.Forget(1)
			w.Forget(2)
			if len(w.streams) != 0 {
				t.Errorf("%d streams are left", len(w.streams))
			}
		})
	}
}

// A tap that starts late begins each stream with the first byte it captured,
// also where the first message is the accepting end's.
func TestWireMidStream(t *testing.T) {
	client, server := netip.MustParseAddrPort("127.0.0.1:40001"), netip.MustParseAddrPort("127.0.0.1:80")
	got := collect(t, NewWire(), Event{Kind: EventMessage, Cookie: 2, PeerCookie: 1, Local: server, Remote: client,
		SndNxt: 1000, RcvNxt: 2000, Offset: 10, Consumed: 20, Size: 1, Payload: []byte{1}})
	for i, want := range []parsed{
		{from: client, seq: 2019, ack: 0, flags: flagSYN},
		{from: server, seq: 1009, ack: 2020, flags: flagSYN | flagACK},
		{from: client, seq: 2020, ack: 1010, flags: flagACK},
		{from: server, seq: 1010, ack: 2020, flags: flagPSH | flagACK},
	} {
		if g := got[i]; g.from != want.from || g.seq != want.seq || g.ack != want.ack || g.flags != want.flags {
			t.Errorf("packet %d: %+v, want %+v", i, g, want)
		}
	}
}

func TestDecodeEvent(t *testing.T) {
	const head = int(unsafe.Sizeof(bpfTapEvent{}))
	e := bpfTapEvent{Cookie: 5, Captured: 3, Size: 4, Kind: uint8(bpfTapKindTAP_MESSAGE), Route: uint8(bpfRouteROUTE_SPILL)}
	copy(e.Comm[:], "redis")
	raw := append(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&e)), head)), "abcREST"...)
	got, err := decodeEvent(raw)
	if err != nil || got.Cookie != 5 || string(got.Payload) != "abc" || got.Size != 4 || got.Comm != "redis" || got.Path != "spill" || got.Kind != EventMessage {
		t.Errorf("%+v, %v", got, err)
	}
	for _, n := range []int{0, head - 1, head + 2} {
		if _, err := decodeEvent(raw[:n]); err == nil {
			t.Errorf("%d bytes were decoded", n)
		}
	}
}
