// SPDX-License-Identifier: Apache-2.0

// Package api is the agent's unix socket: HTTP and JSON, for this user only.
//
//	GET  /v1/status         what the agent does
//	GET  /v1/config         the configuration in force
//	POST /v1/apply          the body, a file, becomes the configuration
//	POST /v1/diff           what that would change
//
// The last two take ?name= for the file's name in errors, and answer with the
// list of changes. An error is {"error": TEXT}.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/node"
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/shunt/agent.sock"

const maxBody = 1 << 20 // bytes of a configuration

// ErrNoAgent says that nobody listens.
var ErrNoAgent = errors.New("no agent is running")

// Agent is what the socket offers.
type Agent interface {
	Status() (node.AgentStatus, error)
	Config() *config.Config
	Plan(*config.Config) []config.Change
	Apply(*config.Config) ([]config.Change, error)
}

type failure struct {
	Error string `json:"error"`
}

// Handler serves an agent.
func Handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s, err := a.Status()
		reply(w, s, http.StatusInternalServerError, err)
	})
	mux.HandleFunc("GET /v1/config", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, a.Config(), 0, nil)
	})
	change := func(do func(*config.Config) ([]config.Change, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name := r.URL.Query().Get("name")
			if name == "" {
				name = "the request"
			}
			data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			if err != nil {
				reply(w, nil, http.StatusBadRequest, fmt.Errorf("read %s: %w", name, err))
				return
			}
			cfg, err := config.Parse(name, data)
			if err != nil {
				reply(w, nil, http.StatusUnprocessableEntity, err)
				return
			}
			changes, err := do(cfg)
			if changes == nil {
				changes = []config.Change{}
			}
			reply(w, changes, http.StatusInternalServerError, err)
		}
	}
	mux.HandleFunc("POST /v1/apply", change(a.Apply))
	mux.HandleFunc("POST /v1/diff", change(func(c *config.Config) ([]config.Change, error) { return a.Plan(c), nil }))
	return mux
}

func reply(w http.ResponseWriter, value any, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(status)
		value = failure{err.Error()}
	}
	if err := json.NewEncoder(w).Encode(value); err != nil {
		slog.Debug("an answer was not taken", "err", err)
	}
}

// Listen opens the socket, for its owner only. The caller holds the agent's lock,
// so a socket that is there is one that a killed agent left.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove an old socket: %w", err)
		}
	}
	// From the first moment on: chmod would come too late.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}

// Serve answers until ctx ends, and finishes what it began.
func Serve(ctx context.Context, l net.Listener, a Agent) error {
	srv := &http.Server{Handler: Handler(a), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	})
	err := srv.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve the socket: %w", err)
	}
	return <-stopped
}

// Client talks to the agent at a socket.
type Client struct {
	http   http.Client
	socket string
}

// NewClient does not connect yet.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http = http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	return c
}

// Status asks what the agent does.
func (c *Client) Status(ctx context.Context) (s node.AgentStatus, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Apply makes data, the contents of the file name, the agent's configuration.
func (c *Client) Apply(ctx context.Context, name string, data []byte) (changes []config.Change, err error) {
	return changes, c.do(ctx, http.MethodPost, "/v1/apply?name="+url.QueryEscape(name), data, &changes)
}

// Diff asks what Apply would change.
func (c *Client) Diff(ctx context.Context, name string, data []byte) (changes []config.Change, err error) {
	return changes, c.do(ctx, http.MethodPost, "/v1/diff?name="+url.QueryEscape(name), data, &changes)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: nobody listens at %s", ErrNoAgent, c.socket)
	}
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	dec := json.NewDecoder(resp.Body)
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := dec.Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("the agent answers %s", resp.Status)
		}
		return errors.New(f.Error)
	}
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}
