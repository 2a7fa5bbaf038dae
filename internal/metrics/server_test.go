// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
)

func answers(addr netip.AddrPort) bool {
	resp, err := http.Get("http://" + addr.String())
	if err != nil {
		return false
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(resp.Body)
	return err == nil && string(body) == "here"
}

func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was accepted
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestServerMoves(t *testing.T) {
	http.DefaultTransport.(*http.Transport).DisableKeepAlives = true
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "here") //nolint:errcheck // the test reads it
	})}
	defer s.Close()
	a, b := freeAddr(t), freeAddr(t)
	if err := s.Listen(a); err != nil || !answers(a) {
		t.Fatalf("no answer at %v: %v", a, err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // nothing was accepted
	if err := s.Listen(netip.MustParseAddrPort(taken.Addr().String())); err == nil {
		t.Error("listens where somebody else does")
	}
	if !answers(a) {
		t.Error("a move that failed took the old address away")
	}
	// The old port at another address.
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	if err := s.Listen(any); err != nil || !answers(a) {
		t.Errorf("no answer at %v: %v", any, err)
	}
	if err := s.Listen(b); err != nil || !answers(b) || answers(a) {
		t.Errorf("did not move from %v to %v: %v", a, b, err)
	}
	if err := s.Listen(netip.AddrPort{}); err != nil || answers(b) {
		t.Errorf("still answers at %v: %v", b, err)
	}
}
