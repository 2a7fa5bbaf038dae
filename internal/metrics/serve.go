// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// A scrape reads every joined socket, 131,072 at most.
	scrapeTimeout = 10 * time.Second
	// Scrapes that run or wait; more than two Prometheus servers and a curl.
	maxScrapes = 4
	// What a scrape under way gets when the server stops.
	stopGrace = 2 * time.Second
)

// Handler answers /metrics from c, and /healthz with 200 as long as it answers at all.
func Handler(c *Collector) http.Handler {
	c.log = true
	slots := make(chan struct{}, maxScrapes)
	scrape := func(w http.ResponseWriter, _ *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", contentType)
		c.WriteText(w) //nolint:errcheck // the text says it, or who asked is gone
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", http.TimeoutHandler(http.HandlerFunc(scrape), scrapeTimeout, "the scrape took too long\n"))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n") //nolint:errcheck // who asked is gone
	})
	return mux
}

// Serve listens on addr and answers with h until ctx ends, which is no error.
func Serve(ctx context.Context, addr string, h http.Handler) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return ServeOn(ctx, l, h)
}

// ServeOn is Serve with a listener, which it closes: for a caller that must know
// that the address is taken before it goes on.
func ServeOn(ctx context.Context, l net.Listener, h http.Handler) error {
	// Every wait is bounded: a peer that says nothing must not keep a goroutine.
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      scrapeTimeout + 5*time.Second,
		IdleTimeout:       2 * time.Minute, // above the usual scrape interval
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("metrics: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	err := s.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.Close()
	}
	<-served //nolint:errcheck // ErrServerClosed
	if err != nil {
		return fmt.Errorf("metrics: stop: %w", err)
	}
	return nil
}
