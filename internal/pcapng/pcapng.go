// SPDX-License-Identifier: Apache-2.0

// Package pcapng writes packet captures in the format of
// draft-ietf-opsawg-pcapng: one section, any number of interfaces, packets with
// nanosecond timestamps and a comment each.
package pcapng

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// LinkRaw is the link type of packets that begin with their IPv4 or IPv6 header.
const LinkRaw = 101

const (
	blockSection   = 0x0A0D0D0A
	blockInterface = 1
	blockPacket    = 6

	byteOrderMagic = 0x1A2B3C4D

	optEnd      = 0
	optComment  = 1
	optName     = 2 // of an interface
	optTsresol  = 9 // of an interface
	optUserAppl = 4 // of a section
	nanoseconds = 9 // as a value of optTsresol: 10^-9
	maxOption   = 0xffff
)

// Writer writes one section. Its caller buffers.
type Writer struct {
	w          io.Writer
	buf        []byte
	interfaces uint32
}

// NewWriter begins a section. application is the name of the program that writes it.
func NewWriter(w io.Writer, application string) (*Writer, error) {
	p := &Writer{w: w}
	p.begin(blockSection)
	p.u32(byteOrderMagic)
	p.u16(1) // version 1.0
	p.u16(0)
	p.u32(^uint32(0)) // length of the section, 64 bits: not known
	p.u32(^uint32(0))
	p.option(optUserAppl, []byte(application))
	p.option(optEnd, nil)
	if err := p.end(); err != nil {
		return nil, err
	}
	return p, nil
}

// AddInterface describes an interface and returns its number. snaplen is the
// most that is kept of a packet, 0 for all.
func (p *Writer) AddInterface(linkType uint16, snaplen uint32, name, comment string) (int, error) {
	p.begin(blockInterface)
	p.u16(linkType)
	p.u16(0)
	p.u32(snaplen)
	p.option(optName, []byte(name))
	if comment != "" {
		p.option(optComment, []byte(comment))
	}
	p.option(optTsresol, []byte{nanoseconds})
	p.option(optEnd, nil)
	if err := p.end(); err != nil {
		return 0, err
	}
	p.interfaces++
	return int(p.interfaces) - 1, nil
}

// Packet writes a packet as it was captured. length is its length on the wire,
// of which data may be only the beginning. comment may be empty.
func (p *Writer) Packet(iface int, at time.Time, data []byte, length int, comment string) error {
	if iface < 0 || uint32(iface) >= p.interfaces {
		return fmt.Errorf("write a packet: no interface %d", iface)
	}
	ns := uint64(at.UnixNano())
	p.begin(blockPacket)
	p.u32(uint32(iface))
	p.u32(uint32(ns >> 32))
	p.u32(uint32(ns))
	p.u32(uint32(len(data)))
	p.u32(uint32(length))
	p.buf = append(p.buf, data...)
	p.pad()
	if comment != "" {
		p.option(optComment, []byte(comment))
		p.option(optEnd, nil)
	}
	return p.end()
}

func (p *Writer) u16(v uint16) { p.buf = binary.LittleEndian.AppendUint16(p.buf, v) }
func (p *Writer) u32(v uint32) { p.buf = binary.LittleEndian.AppendUint32(p.buf, v) }

// pad fills up to the next multiple of 32 bits.
func (p *Writer) pad() {
	for len(p.buf)%4 != 0 {
		p.buf = append(p.buf, 0)
	}
}

func (p *Writer) begin(kind uint32) {
	p.buf = p.buf[:0]
	p.u32(kind)
	p.u32(0) // the length, see end
}

func (p *Writer) option(code uint16, value []byte) {
	value = value[:min(len(value), maxOption)]
	p.u16(code)
	p.u16(uint16(len(value)))
	p.buf = append(p.buf, value...)
	p.pad()
}

func (p *Writer) end() error {
	length := uint32(len(p.buf) + 4)
	p.u32(length)
	binary.LittleEndian.PutUint32(p.buf[4:], length)
	_, err := p.w.Write(p.buf)
	return err
}
