// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

// TestUnloadDrains: idle connections and busy ones go back to plain TCP and go
// on; one whose reader does not read is waited for, and keeps its bytes.
func TestUnloadDrains(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	sink := server.must("listen 127.0.0.1:0 sink")
	a := p.agent("accel: {select: [{cgroup: " + p.path("") + "}]}")
	idle, busy := client.must("dial %s", addr), client.must("dial %s", addr)
	client.must("exchange %s 20 5000", idle)
	client.must("run %s", busy)

	// Unread: the reader is known by its first read, then does not read.
	out := client.must("dial %s", sink)
	in := server.must("accepted")
	client.must("send %s 1000", out)
	server.must("read %s 1000", in)
	before := stats(t, a).Redirected
	client.must("send %s 3000", out)
	opts := node.UnloadOptions{AgentOptions: p.options()}
	if _, err := node.Unload(t.Context(), opts); !errors.Is(err, node.ErrAgentRuns) {
		t.Errorf("unload beside a running agent: %v", err)
	}
	a.Close()

	waited := 0
	opts.Waiting = func(left []accel.Remaining) { waited = left[0].Sockets() }
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	_, err := node.Unload(ctx, opts)
	cancel()
	if !errors.Is(err, node.ErrBusy) || waited == 0 {
		t.Fatalf("with unread bytes: %v, reported %d (redirected before: %+v)", err, waited, before)
	}
	// Plain again already, and nothing new joins.
	client.must("exchange %s 20 5000", idle)
	late := client.must("dial %s", addr)
	client.must("exchange %s 20 5000", late)
	if n, err := accel.Mapped(filepath.Join(p.pins, "agent")); err != nil || n == 0 || n > 2 {
		t.Errorf("%d sockets in the map, %v: want the one that does not read, and perhaps its peer", n, err)
	}

	server.must("read %s 3000", in)
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := node.Unload(ctx, opts); err != nil {
		t.Fatalf("after the read: %v", err)
	}
	if _, err := os.Stat(p.pins); err == nil {
		t.Error("pins are left")
	}
	if rounds := client.must("stop %s", busy); rounds == "0" {
		t.Error("the busy connection stood still")
	}
	for _, id := range []string{idle, busy, late} {
		client.must("exchange %s 20 5000", id)
	}
	client.must("send %s 3000", out)
	server.must("read %s 3000", in)
}

// TestUnloadForce loses what was not read, and says how much there was.
func TestUnloadForce(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	a := p.agent("accel: {select: [{cgroup: " + p.path("") + "}]}")
	id := client.must("dial %s", addr)
	client.must("exchange %s 20 5000", id)
	a.Close()
	removed, err := node.Unload(t.Context(), node.UnloadOptions{AgentOptions: p.options(), Force: true})
	if err != nil || removed != 2 {
		t.Errorf("forced: %d sockets, %v", removed, err)
	}
	if _, err := os.Stat(p.pins); err == nil {
		t.Error("pins are left")
	}
	client.must("exchange %s 20 5000", id) // nothing was queued
}

// TestRestart: the next agent has the same instance, with what it counted.
func TestRestart(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	yaml := "accel: {select: [{cgroup: " + p.path("") + "}]}"
	a := p.agent(yaml)
	id := client.must("dial %s", addr)
	client.must("run %s", id)
	if _, err := node.NewAgent(p.config(yaml), p.options()); !errors.Is(err, node.ErrAgentRuns) {
		t.Errorf("a second agent: %v", err)
	}
	a.Close()
	between := client.must("dial %s", addr) // nobody is there, the data path is
	client.must("exchange %s 20 5000", between)
	a = p.agent(yaml)
	defer a.Close()
	s, err := a.Status()
	if err != nil || !s.Adopted || s.Upgraded || s.Stats.Joined != 2 {
		t.Errorf("want the same instance with 2 joined: %+v, %v", s, err)
	}
	client.must("stop %s", id)
	client.must("close %s", id)
	client.must("close %s", between)
	p.until("what they moved is counted", func() bool { return stats(t, a).Redirected.Bytes > 100000 })
}

// TestUpgrade: another build replaces the programs and keeps the maps. Old
// connections and new ones go from socket to socket after it, and can still leave.
func TestUpgrade(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	yaml := "accel: {select: [{cgroup: " + p.path("") + "}]}"
	p.agent(yaml).Close()
	old := client.must("dial %s", addr)
	client.must("run %s", old)
	for range 5 {
		otherBuild(t, p.pins, false)
		a := p.agent(yaml)
		if s, err := a.Status(); err != nil || !s.Adopted || !s.Upgraded {
			t.Errorf("not upgraded: %+v, %v", s, err)
		}
		a.Close()
	}
	a := p.agent(yaml)
	if s, err := a.Status(); err != nil || !s.Adopted || s.Upgraded {
		t.Errorf("upgraded again: %+v, %v", s, err)
	}
	fresh := client.must("dial %s", addr)
	client.must("exchange %s 20 5000", fresh)
	client.must("stop %s", old)
	if s := stats(t, a); s.Joined != 2 {
		t.Errorf("want both joined: %+v", s)
	}
	a.Close()
	// The receive calls were each counted once, or none would be quiet ever.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := node.Unload(ctx, node.UnloadOptions{AgentOptions: p.options()}); err != nil {
		t.Errorf("unload: %v", err)
	}
	client.must("exchange %s 20 5000", old)
}

// TestNewLayout: what cannot be adopted ends by itself, beside the new instance.
func TestNewLayout(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	yaml := "accel: {select: [{ports: [" + port + "]}]}"
	p.agent(yaml).Close()
	old := client.must("dial %s", addr)
	client.must("run %s", old)
	otherBuild(t, p.pins, true)
	a := p.agent(yaml)
	defer a.Close()
	s, err := a.Status()
	if err != nil || s.Adopted || s.Draining != 1 {
		t.Errorf("want a new instance and one that drains: %+v, %v", s, err)
	}
	fresh := client.must("dial %s", addr)
	client.must("exchange %s 20 5000", fresh)
	if s := stats(t, a); s.Joined != 1 {
		t.Errorf("the new instance joined %d: %+v", s.Joined, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { a.Run(ctx, nil); close(ran) }()
	p.until("the old instance is gone", func() bool {
		s, err := a.Status()
		return err == nil && s.Draining == 0
	})
	cancel()
	<-ran
	if rounds := client.must("stop %s", old); rounds == "0" {
		t.Error("the old connection stood still")
	}
	client.must("exchange %s 20 5000", old)
	client.must("exchange %s 20 5000", fresh)
}

// TestReloadRefused: what cannot be applied changes nothing.
func TestReloadRefused(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	a := p.agent("accel: {select: [{cgroup: " + p.path("") + "}]}")
	defer a.Close()
	bad := p.config("accel: {select: []}")
	bad.Accel.Accept = []string{"G1"} // reading a file would refuse it already
	if _, err := a.Apply(bad); err == nil {
		t.Error("giving G1 up was accepted")
	}
	if s, err := a.Status(); err != nil || s.LastError == "" {
		t.Errorf("the status does not say so: %+v, %v", s, err)
	}
	if len(a.Config().Accel.Select) != 1 {
		t.Errorf("in force: %+v", a.Config())
	}
	id := client.must("dial %s", addr)
	client.must("exchange %s 2 100", id)
	if s := stats(t, a); s.Joined != 1 {
		t.Errorf("joined %d: %+v", s.Joined, s)
	}
}
