// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

type block struct {
	kind uint32
	body []byte
}

// split takes a file apart by the lengths that each block has at both ends.
func split(t *testing.T, b []byte) (list []block) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 12 {
			t.Fatalf("%d bytes are left over", len(b))
		}
		n := binary.LittleEndian.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatalf("a block of %d bytes in %d", n, len(b))
		}
		list = append(list, block{binary.LittleEndian.Uint32(b), b[8 : n-4]})
		b = b[n:]
	}
	return list
}

func options(t *testing.T, b []byte) map[uint16]string {
	t.Helper()
	m := map[uint16]string{}
	for len(b) >= 4 {
		code, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if code == optEnd {
			if len(b) != 4 {
				t.Errorf("%d bytes after the end of options", len(b)-4)
			}
			return m
		}
		m[code] = string(b[4 : 4+n])
		b = b[4+(n+3)/4*4:]
	}
	if len(b) > 0 || len(m) > 0 {
		t.Error("options without an end")
	}
	return m
}

func TestWriter(t *testing.T) {
	var file bytes.Buffer
	w, err := NewWriter(&file, "test")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one", "second"} {
		if n, err := w.AddInterface(LinkRaw, 100, name, "about "+name); err != nil || n != i {
			t.Fatalf("interface %d, %v", n, err)
		}
	}
	at := time.Unix(1_700_000_000, 123_456_789)
	if err := w.Packet(1, at, []byte("abcde"), 9, "who"); err != nil {
		t.Fatal(err)
	}
	if err := w.Packet(0, at, []byte("abcd"), 4, ""); err != nil {
		t.Fatal(err)
	}
	if err := w.Packet(2, at, nil, 0, ""); err == nil {
		t.Error("a packet of an interface that is not there")
	}
	blocks := split(t, file.Bytes())
	if len(blocks) != 5 || blocks[0].kind != blockSection || blocks[1].kind != blockInterface || blocks[3].kind != blockPacket {
		t.Fatalf("blocks: %+v", blocks)
	}
	if got := options(t, blocks[0].body[16:])[optUserAppl]; got != "test" {
		t.Errorf("application %q", got)
	}
	second := options(t, blocks[2].body[8:])
	if second[optName] != "second" || second[optComment] != "about second" || second[optTsresol] != "\x09" {
		t.Errorf("interface options: %v", second)
	}
	p := blocks[3].body
	ns := uint64(binary.LittleEndian.Uint32(p[4:]))<<32 | uint64(binary.LittleEndian.Uint32(p[8:]))
	if binary.LittleEndian.Uint32(p) != 1 || int64(ns) != at.UnixNano() ||
		binary.LittleEndian.Uint32(p[12:]) != 5 || binary.LittleEndian.Uint32(p[16:]) != 9 || string(p[20:25]) != "abcde" {
		t.Errorf("packet: % x", p)
	}
	if got := options(t, p[28:])[optComment]; got != "who" {
		t.Errorf("comment %q", got)
	}
	if len(blocks[4].body) != 24 {
		t.Errorf("a packet without comment has %d bytes", len(blocks[4].body))
	}
}
