// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"encoding/binary"
	"net/netip"
)

// Packet is what a message would have been on the wire.
type Packet struct {
	Data    []byte // from the IP header on; valid until the next call
	Length  int    // on the wire, of which Data may be only the beginning
	Payload int    // bytes of payload on the wire; 0: the handshake
}

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	hopLimit   = 64
	dontFrag   = 0x4000
	protoTCP   = 6

	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10

	// What a socket of a local connection says of itself.
	window      = 0xffff
	windowScale = 7
	// MaxSegment is the most payload that one packet can carry: an IPv4 packet
	// has at most 65535 bytes, 40 of which are headers.
	MaxSegment = 65495

	// Connections whose end was not seen, because a buffer was full, must not
	// pile up.
	maxStreams = 1 << 17
)

// synOptions: maximum segment size, a pad, window scale.
var synOptions = []byte{2, 4, MaxSegment >> 8, MaxSegment & 0xff, 1, 3, 3, windowScale}

// Wire makes packets of messages. The sequence numbers are synthesized: one
// continuous stream for each direction, as if every byte had gone over TCP. See
// docs/decisions/012-tap-sequence-numbers.md.
type Wire struct {
	streams map[uint64]*stream // by either cookie
	buf     []byte
	id      uint16
}

// stream is one connection, with what it has from either end.
type stream struct {
	from map[uint64]*half
}

// half is one direction. Numbers before start are from before the tap.
type half struct {
	start uint32 // first sequence number of the payload in the capture
	acked uint32 // what it acknowledged last
}

// NewWire starts without any connection.
func NewWire() *Wire { return &Wire{streams: map[uint64]*stream{}} }

// Message gives out the packets of one message event: the handshake first if
// the connection was not seen before.
func (w *Wire) Message(e Event, emit func(Packet) error) error {
	s := w.streams[e.Cookie]
	if s == nil && e.PeerCookie != 0 {
		s = w.streams[e.PeerCookie]
	}
	// What this end had sent, and what its application had received of the
	// other's. Modulo 2^32, as sequence numbers are.
	seq, ack := e.SndNxt+uint32(e.Offset), e.RcvNxt+uint32(e.Consumed)
	if s == nil {
		if len(w.streams) >= maxStreams {
			clear(w.streams)
		}
		s = &stream{from: map[uint64]*half{}}
		if err := w.handshake(e, seq, ack, emit); err != nil {
			return err
		}
	}
	own := s.from[e.Cookie]
	if own == nil {
		own = &half{start: seq, acked: ack}
		s.from[e.Cookie] = own
	}
	w.streams[e.Cookie] = s
	if e.PeerCookie != 0 {
		w.streams[e.PeerCookie] = s
	}
	// An acknowledgement never goes back, whatever a reader was counted late.
	if int32(ack-own.acked) > 0 {
		own.acked = ack
	}
	for done := 0; done < e.Size || done == 0; {
		size := min(e.Size-done, MaxSegment-ipv6Header+ipv4Header)
		payload := e.Payload[min(done, len(e.Payload)):min(done+size, len(e.Payload))]
		p := w.packet(e.Local, e.Remote, seq+uint32(done), own.acked, flagPSH|flagACK, nil, payload, size)
		if err := emit(p); err != nil {
			return err
		}
		if done += size; size == 0 {
			break
		}
	}
	return nil
}

// handshake comes at the place where the capture begins, so that the stream of
// a connection that is older than the tap begins with the first byte captured.
func (w *Wire) handshake(e Event, seq, ack uint32, emit func(Packet) error) error {
	client, server, c, s := e.Local, e.Remote, seq, ack
	if !e.Active {
		client, server, c, s = server, client, s, c
	}
	for _, p := range []struct {
		from, to netip.AddrPort
		seq, ack uint32
		flags    byte
		options  []byte
	}{
		{client, server, c - 1, 0, flagSYN, synOptions},
		{server, client, s - 1, c, flagSYN | flagACK, synOptions},
		{client, server, c, s, flagACK, nil},
	} {
		if err := emit(w.packet(p.from, p.to, p.seq, p.ack, p.flags, p.options, nil, 0)); err != nil {
			return err
		}
	}
	return nil
}

// Forget drops a socket that is gone.
func (w *Wire) Forget(cookie uint64) { delete(w.streams, cookie) }

// packet builds IP and TCP headers for size bytes of payload, of which payload
// may be only the beginning.
func (w *Wire) packet(from, to netip.AddrPort, seq, ack uint32, flags byte, options, payload []byte, size int) Packet {
	b := w.buf[:0]
	tcpLen := tcpHeader + len(options) + size
	var sum uint32
	if from.Addr().Is4() {
		w.id++
		src, dst := from.Addr().As4(), to.Addr().As4()
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ipv4Header+tcpLen))
		b = binary.BigEndian.AppendUint16(b, w.id)
		b = binary.BigEndian.AppendUint16(b, dontFrag)
		b = append(b, hopLimit, protoTCP, 0, 0)
		b = append(append(b, src[:]...), dst[:]...)
		binary.BigEndian.PutUint16(b[10:], fold(checksum(0, b)))
		sum = checksum(checksum(0, src[:]), dst[:])
	} else {
		src, dst := from.Addr().As16(), to.Addr().As16()
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(tcpLen))
		b = append(b, protoTCP, hopLimit)
		b = append(append(b, src[:]...), dst[:]...)
		sum = checksum(checksum(0, src[:]), dst[:])
	}
	ip := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, byte((tcpHeader+len(options))/4)<<4, flags)
	b = binary.BigEndian.AppendUint16(b, window)
	b = append(b, 0, 0, 0, 0)
	b = append(b, options...)
	// Of a payload that was cut nobody can know the checksum, nor check it.
	sum = checksum(sum+protoTCP+uint32(tcpLen), b[ip:])
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[ip+16:], fold(checksum(sum, payload)))
	w.buf = b
	return Packet{Data: b, Length: ip + tcpLen, Payload: size}
}

// checksum adds up big-endian 16-bit words (RFC 1071), an odd last byte as if
// a zero followed.
func checksum(sum uint32, b []byte) uint32 {
	s := uint64(sum)
	for ; len(b) >= 4; b = b[4:] {
		s += uint64(binary.BigEndian.Uint32(b))
	}
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint32(s)
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
