// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"
)

func stream(size, messages int) []byte {
	var out []byte
	for i := range uint64(messages) {
		msg := make([]byte, size)
		if i == uint64(messages)-1 {
			i |= lastMessage
		}
		mark(msg, i)
		out = append(out, msg...)
	}
	return out
}

func feed(v *verifier, data []byte, piece int) error {
	for len(data) > 0 {
		n := min(piece, len(data))
		if err := v.add(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func TestVerifierTakesAnyPieces(t *testing.T) {
	for _, size := range []int{16, 17, 23, 64} {
		for piece := 1; piece < 3*size; piece++ {
			v := verifier{size: size}
			data := stream(size, 9)
			if err := feed(&v, data, piece); err != nil {
				t.Fatalf("size %d in pieces of %d: %v", size, piece, err)
			}
			if !v.done || v.total != uint64(len(data)) {
				t.Fatalf("size %d in pieces of %d: done %v after %d bytes", size, piece, v.done, v.total)
			}
		}
	}
}

func TestVerifierNoticesDamage(t *testing.T) {
	const size = 64
	for name, damage := range map[string]func([]byte) []byte{
		"one byte lost":    func(d []byte) []byte { return append(d[:100:100], d[101:]...) },
		"message lost":     func(d []byte) []byte { return append(d[:size:size], d[2*size:]...) },
		"message twice":    func(d []byte) []byte { return append(d[:size:size], d...) },
		"messages swapped": func(d []byte) []byte { return append(append(d[size:2*size:2*size], d[:size]...), d[2*size:]...) },
		"bytes after end":  func(d []byte) []byte { return append(d, 0) },
	} {
		for piece := 1; piece < 3*size; piece++ {
			v := verifier{size: size}
			if err := feed(&v, damage(stream(size, 9)), piece); err == nil {
				t.Errorf("%s, in pieces of %d: not noticed", name, piece)
			}
		}
	}
}

func TestAddressRoundTrip(t *testing.T) {
	for _, want := range []string{"tcp:127.0.0.1:80", "tcp:[fd77::1]:65535", "unix:/run/x"} {
		sa, _, err := address(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressOf(sa); got != want {
			t.Errorf("%s came back as %s", want, got)
		}
	}
	for _, bad := range []string{"", "127.0.0.1:80", "tcp:localhost:80"} {
		if _, _, err := address(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
