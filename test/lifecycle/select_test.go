// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/shuntnet/shunt/internal/node"
)

// TestSelect: each dimension, alone and together, for either end.
func TestSelect(t *testing.T) {
	p := newPlace(t)
	server := p.peer("srv/inner.service", func(a *syscall.SysProcAttr) {
		a.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	})
	client := p.peer("cli-1")
	addr := server.must("listen 127.0.0.1:0 echo")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	a := p.agent("")
	defer a.Close()
	cookiePath := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())

	sel := func(lines ...string) string { return "select: [{" + strings.Join(lines, "}, {") + "}]" }
	exc := func(lines ...string) string { return "exclude: [{" + strings.Join(lines, "}, {") + "}]" }
	for _, c := range []struct {
		name string
		yaml []string
		want bool
	}{
		{"nothing", nil, false},
		{"port", []string{sel("ports: [" + port + "]")}, true},
		{"another port", []string{sel("ports: [1]")}, false},
		{"range of ports", []string{sel("ports: [1-65535]")}, true},
		{"second of two ports", []string{sel("ports: [1, " + port + "]")}, true},
		{"second selector", []string{sel("ports: [1]", "ports: ["+port+"]")}, true},
		{"prefix", []string{sel("addresses: [127.0.0.0/8]")}, true},
		{"long prefix of one selector, short one of another", []string{sel("addresses: [127.0.0.1/32], ports: [1]", "addresses: [127.0.0.0/8]")}, true},
		{"another prefix", []string{sel("addresses: [10.77.0.0/16]")}, false},
		{"the server's cgroup", []string{sel("cgroup: " + p.path("srv/inner.service"))}, true},
		{"above the server's cgroup", []string{sel("cgroup: " + p.path("srv"))}, true},
		{"the client's cgroup", []string{sel("cgroup: " + p.path("cli-1"))}, true},
		{"glob", []string{sel("cgroup: \"" + p.path("cli-*") + "\"")}, true},
		{"glob of one level only", []string{sel("cgroup: \"" + filepath.Join(filepath.Dir(p.path("")), "*/inner.service") + "\"")}, false},
		{"unit", []string{sel("unit: inner.service")}, true},
		{"no such cgroup", []string{sel("cgroup: /shunt-no-such-cgroup")}, false},
		{"the server's uid", []string{sel("uids: [65534]")}, true},
		{"the client's uid", []string{sel("uids: [0]")}, true},
		{"another uid", []string{sel("uids: [65533]")}, false},
		{"namespace", []string{sel("netns: " + cookiePath)}, true},
		{"no such namespace", []string{sel("netns: shunt-no-such-name")}, false},
		{"all at once, of the server", []string{sel("ports: [" + port + "], addresses: [127.0.0.1/32], uids: [65534], netns: " + cookiePath + ", cgroup: " + p.path("srv"))}, true},
		{"cgroup of one end, uid of the other", []string{sel("cgroup: " + p.path("srv") + ", uids: [0]")}, false},
		{"port right, cgroup wrong", []string{sel("ports: [" + port + "], cgroup: /shunt-no-such-cgroup")}, false},
		{"excluded port", []string{sel("addresses: [127.0.0.0/8]"), exc("ports: [" + port + "]")}, false},
		{"another port excluded", []string{sel("addresses: [127.0.0.0/8]"), exc("ports: [1]")}, true},
		{"the client selected, the server excluded", []string{sel("cgroup: " + p.path("cli-1")), exc("cgroup: " + p.path("srv"))}, false},
		{"the server selected, the client excluded", []string{sel("ports: [" + port + "]"), exc("uids: [0]")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			yaml := "accel: {" + strings.Join(c.yaml, ", ") + "}"
			if _, err := a.Apply(p.config(yaml)); err != nil {
				t.Fatal(err)
			}
			before := stats(t, a)
			id := client.must("dial %s", addr)
			client.must("exchange %s 5 3000", id)
			client.must("close %s", id)
			after := stats(t, a)
			joined, unselected := after.Joined-before.Joined, after.NotJoined["unselected"]-before.NotJoined["unselected"]
			if c.want && (joined != 1 || unselected != 0) || !c.want && (joined != 0 || unselected != 1) {
				t.Errorf("%s: want joined %v, but joined %d, unselected %d: %+v", yaml, c.want, joined, unselected, after.NotJoined)
			}
			if c.want {
				p.until("bytes were redirected", func() bool { return stats(t, a).Redirected.Bytes > before.Redirected.Bytes })
			}
		})
	}
}

// TestReloadUnderTraffic: what is established goes on as it was, whatever the
// selection becomes; only new connections see it.
func TestReloadUnderTraffic(t *testing.T) {
	p := newPlace(t)
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	_, port, _ := net.SplitHostPort(addr)
	on := p.config("accel: {select: [{ports: [" + port + "]}]}")
	off := p.config("accel: {select: [{ports: [1]}]}")
	a := p.agent("accel: {select: [{ports: [" + port + "]}]}")
	defer a.Close()

	joined := client.must("dial %s", addr)
	client.must("run %s", joined)
	if _, err := a.Apply(off); err != nil {
		t.Fatal(err)
	}
	plain := client.must("dial %s", addr)
	client.must("run %s", plain)
	for i := range 100 {
		cfg := on
		if i%2 == 1 {
			cfg = off
		}
		if _, err := a.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{joined, plain} {
		if rounds := client.must("stop %s", id); rounds == "0" {
			t.Errorf("connection %s did nothing", id)
		}
	}
	s := stats(t, a)
	if s.Joined != 1 || s.NotJoined["unselected"] != 1 || s.Redirected.Bytes != 0 && len(s.Left) != 0 {
		t.Errorf("want one joined, one unselected, none that left: %+v", s)
	}
	client.must("close %s", joined)
	p.until("the joined one was redirected", func() bool { return stats(t, a).Redirected.Bytes > 0 })
}

// TestNewCgroup: a cgroup that comes after the configuration is found.
func TestNewCgroup(t *testing.T) {
	p := newPlace(t)
	server := p.peer("srv")
	addr := server.must("listen 127.0.0.1:0 echo")
	a := p.agent("accel: {select: [{cgroup: \"" + p.path("late-*") + "\"}]}")
	defer a.Close()
	if s, err := a.Status(); err != nil || len(s.Missing) != 1 {
		t.Errorf("want the cgroup reported as missing: %+v, %v", s.Missing, err)
	}
	go a.Run(t.Context(), nil)
	client := p.peer("late-1/below")
	p.until("a connection of the new cgroup is joined", func() bool {
		id := client.must("dial %s", addr)
		client.must("exchange %s 1 100", id)
		client.must("close %s", id)
		return stats(t, a).Joined > 0
	})
}

// TestSessionBelowAgent: both instances see the sockets of a `shunt run`, and
// only one joins them.
func TestSessionBelowAgent(t *testing.T) {
	p := newPlace(t)
	session, err := node.NewSession(node.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The agent looks at everything that the session's cgroup lies in.
	opts := p.options()
	opts.CgroupRoot = filepath.Dir(session.Dir())
	// Only connections of this session's processes.
	rel := strings.TrimPrefix(session.Dir(), filepath.Dir(p.cgroup))
	a, err := node.NewAgent(p.config("accel: {select: [{cgroup: "+filepath.Join(filepath.Dir(p.path("")), rel)+"}]}"), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	inSession := func(attr *syscall.SysProcAttr) { attr.CgroupFD = session.CgroupFD() }
	server, client := p.peer("", inSession), p.peer("", inSession)
	addr := server.must("listen 127.0.0.1:0 echo")
	var ids []string
	for range 20 {
		ids = append(ids, client.must("dial %s", addr))
	}
	for _, id := range ids {
		client.must("exchange %s 20 5000", id)
	}
	own, err := session.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if own.Joined != 20 || len(own.Faults) > 0 {
		t.Errorf("the session joined %d of 20: %+v", own.Joined, own)
	}
	if s := stats(t, a); s.Joined != 0 || s.NotJoined["foreign"] != 20 {
		t.Errorf("the agent joined %d: %+v", s.Joined, s)
	}
	for _, id := range ids {
		client.must("close %s", id)
	}
	// From the session to outside: the agent's, for the session refuses it.
	outside := p.peer("outside")
	id := client.must("dial %s", outside.must("listen 127.0.0.1:0 echo"))
	client.must("exchange %s 20 5000", id)
	if s := stats(t, a); s.Joined != 1 {
		t.Errorf("the agent joined %d to outside of the session: %+v", s.Joined, s)
	}
	client.must("close %s", id)
	server.kill()
	client.kill()
	p.until("the session can go", func() bool { return session.Close() == nil })
}

// TestNoMixture: a reload comes between the SYN and its answer. Neither selection
// selects the connection, but the listening end judged by the first and the
// connecting end by the second would. Without the reload in between, a handshake
// held up in the same way is joined.
func TestNoMixture(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second func(p *place) string
		joined        uint64
	}{
		{
			"reload in between",
			func(p *place) string {
				return "accel: {select: [{cgroup: " + p.path("srv") + "}], exclude: [{cgroup: " + p.path("cli") + "}]}"
			},
			func(p *place) string { return "accel: {select: [{ports: [1]}, {cgroup: " + p.path("nobody") + "}]}" },
			0,
		},
		{
			"no reload",
			func(p *place) string { return "accel: {select: [{cgroup: " + p.path("srv") + "}]}" },
			nil,
			1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			ns := func(a *syscall.SysProcAttr) { a.Cloneflags = syscall.CLONE_NEWNET }
			server, client := p.peer("srv", ns), p.peer("cli", ns)
			const serverMAC, clientMAC, nobodysMAC = "02:00:00:00:77:01", "02:00:00:00:77:02", "02:00:00:00:77:03"
			veth(t, server, client)
			server.must("address eth 10.77.7.1/24 " + serverMAC)
			client.must("address eth 10.77.7.2/24 " + clientMAC)
			client.must("neighbour eth 10.77.7.1 " + serverMAC)
			// The answer to the SYN goes nowhere.
			server.must("neighbour eth 10.77.7.2 " + nobodysMAC)

			a := p.agent(c.first(p))
			defer a.Close()
			addr := server.must("listen 10.77.7.1:7707 echo")
			dialled := make(chan string, 1)
			go func() {
				id, err := client.do("dial %s", addr)
				if err != nil {
					id = err.Error()
				}
				dialled <- id
			}()
			notes, err := ebpf.LoadPinnedMap(filepath.Join(p.pins, "agent", "shunt_syns"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer notes.Close()
			p.until("the SYN is noted", func() bool {
				var key []byte
				return notes.NextKey(nil, &key) == nil
			})
			if c.second != nil {
				if _, err := a.Apply(p.config(c.second(p))); err != nil {
					t.Fatal(err)
				}
			}
			server.must("neighbour eth 10.77.7.2 " + clientMAC)
			id := <-dialled
			client.must("exchange %s 5 1000", id)
			if s := stats(t, a); s.Joined != c.joined || s.NotJoined["unselected"] != 1-c.joined || s.Connections != 1 {
				t.Errorf("joined %d, want %d: %+v", s.Joined, c.joined, s)
			}
		})
	}
}

// veth connects the namespaces of two peers; each end is called eth.
func veth(t *testing.T, a, b *peer) {
	t.Helper()
	// Never more than 15 characters, and nobody else's.
	name := func(q *peer) string { return fmt.Sprintf("shl%d", q.cmd.Process.Pid) }
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name(b)}
	pair.Name = name(a)
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for _, q := range []*peer{a, b} {
		l, err := netlink.LinkByName(name(q))
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetNsPid(l, q.cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		q.must("rename %s eth", name(q))
	}
}

// TestOtherNamespace: the agent finds the namespaces of any process, to guard
// their devices, and selects by namespace.
func TestOtherNamespace(t *testing.T) {
	p := newPlace(t)
	inside := p.peer("srv", func(a *syscall.SysProcAttr) { a.Cloneflags = syscall.CLONE_NEWNET })
	inside.must("up")
	outside := p.peer("cli")
	a := p.agent(fmt.Sprintf("accel: {select: [{netns: /proc/%d/ns/net}]}", inside.cmd.Process.Pid))
	defer a.Close()
	for _, c := range []struct {
		peer *peer
		want uint64
	}{{outside, 0}, {inside, 1}} {
		before := stats(t, a)
		addr := c.peer.must("listen 127.0.0.1:0 echo")
		id := c.peer.must("dial %s", addr)
		p.until("bytes are redirected, or none is joined", func() bool {
			c.peer.must("exchange %s 5 1000", id)
			if c.want == 0 {
				return true
			}
			again := c.peer.must("dial %s", addr)
			c.peer.must("exchange %s 5 1000", again)
			c.peer.must("close %s", again)
			return stats(t, a).Redirected.Bytes > before.Redirected.Bytes
		})
		c.peer.must("close %s", id)
		if s := stats(t, a); (s.Joined > before.Joined) != (c.want > 0) {
			t.Errorf("joined %d: %+v", s.Joined, s)
		}
	}
}
