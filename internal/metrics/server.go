// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Server answers on an address that may change while it runs. The zero Handler
// answers nothing; its methods may be called by several goroutines.
type Server struct {
	Handler http.Handler

	mu   sync.Mutex
	addr netip.AddrPort
	stop func()
}

// Listen answers at addr from now on, and no more at the address before; at the
// zero AddrPort it answers nowhere. On error it goes on as before.
func (s *Server) Listen(addr netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.addr
	if addr == before {
		return nil
	}
	// First, for the new address may be the old port.
	s.close()
	err := s.open(addr)
	if err != nil {
		err = errors.Join(err, s.open(before))
	}
	return err
}

func (s *Server) open(addr netip.AddrPort) error {
	if !addr.IsValid() {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := ServeOn(ctx, l, s.Handler); err != nil {
			slog.Error("metrics are not served any more", "addr", addr, "err", err)
		}
	}()
	s.addr = addr
	s.stop = func() {
		cancel()
		<-done
	}
	return nil
}

func (s *Server) close() {
	if s.stop != nil {
		s.stop()
	}
	s.addr, s.stop = netip.AddrPort{}, nil
}

// Close stops answering.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
}
