// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

const pins = "/sys/fs/bpf/shunt/accel"

// session is what one shunt run has in the kernel, by the kernel's numbers.
// Others may run on this machine at the same time; they do not count.
type session struct {
	name     string
	cgroup   string
	programs map[ebpf.ProgramID]string
	maps     []ebpf.MapID
	links    []link.ID
}

// sessionOf lists what the session has now, whose cgroup the command saw as
// path in /proc/self/cgroup.
func sessionOf(t *testing.T, path string) session {
	t.Helper()
	mount, err := kernel.Cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	s := session{name: filepath.Base(path), cgroup: filepath.Join(mount, path), programs: map[ebpf.ProgramID]string{}}
	pinned, err := os.ReadDir(filepath.Join(pins, s.name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range pinned {
		pin := filepath.Join(pins, s.name, e.Name())
		if strings.HasPrefix(e.Name(), "link-") {
			l, err := link.LoadPinnedLink(pin, nil)
			if err != nil {
				t.Fatal(err)
			}
			info, err := l.Info()
			l.Close()
			if err != nil {
				t.Fatal(err)
			}
			s.links = append(s.links, info.ID)
			continue
		}
		if strings.HasPrefix(e.Name(), "prog-") { // found below, by its maps
			continue
		}
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		s.maps = append(s.maps, id)
	}
	// A program belongs to the session if it uses one of its maps.
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			break
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // just gone
		}
		if info, err := p.Info(); err == nil {
			used, _ := info.MapIDs()
			if slices.ContainsFunc(used, func(id ebpf.MapID) bool { return slices.Contains(s.maps, id) }) {
				s.programs[id] = info.Name
			}
		}
		p.Close()
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("list programs: %v", err)
	}
	return s
}

// complete checks that sessionOf saw all there is, so that gone means something.
func (s session) complete(t *testing.T) session {
	t.Helper()
	for _, want := range []string{"join", "redirect", "receive", "received", "released", "reset", "drain"} {
		n := 0
		for _, name := range s.programs {
			if name == want {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s has program %s %d times: %v", s.name, want, n, s.programs)
		}
	}
	if len(s.links) < 4 { // join, received, released, a guard
		t.Errorf("%s has %d links", s.name, len(s.links))
	}
	return s
}

// left says what is still there.
func (s session) left() []string {
	var left []string
	for _, path := range []string{s.cgroup, filepath.Join(pins, s.name)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			left = append(left, path)
		}
	}
	for id, name := range s.programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			left = append(left, "program "+name)
		}
	}
	for _, id := range s.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			what := "a map"
			if info, err := m.Info(); err == nil {
				what = "map " + info.Name
			}
			m.Close()
			left = append(left, what)
		}
	}
	for _, id := range s.links {
		if l, err := link.NewFromID(id); err == nil {
			l.Close()
			left = append(left, "a link")
		}
	}
	return left
}

func (s session) gone(t *testing.T) {
	t.Helper()
	for _, path := range []string{s.cgroup, filepath.Join(pins, s.name)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
	// The kernel frees the rest after its last user is out, a moment later. It
	// empties a table of programs from a work queue when its last handle goes, and
	// never frees it if a handle is opened and closed before that has run
	// (prog_array_map_clear takes a reference for work that is queued already). So
	// looking too early would make what it looks for.
	time.Sleep(500 * time.Millisecond)
	var left []string
	defer func() {
		if t.Failed() {
			t.Logf("left: %v", left)
		}
	}()
	eventually(t, "nothing of "+s.name+" is left", func() bool {
		left = s.left()
		return len(left) == 0
	})
}

// empty waits until the session's processes are gone for its cgroup too.
func (s session) empty(t *testing.T) {
	t.Helper()
	eventually(t, "no process in "+s.cgroup, func() bool {
		b, err := os.ReadFile(filepath.Join(s.cgroup, "cgroup.events"))
		return err != nil || !bytes.Contains(b, []byte("populated 1"))
	})
}

// status asks shunt status about one session; nil if it does not know it.
func (s session) status(t *testing.T) *node.Instance {
	t.Helper()
	var list []node.Instance
	decode(t, command(t, shunt, "status", "-o", "json").succeed(t), &list)
	for _, i := range list {
		if i.Name == s.name {
			return &i
		}
	}
	return nil
}

// talking starts helper talk under shunt; it has said where it runs.
func talking(t *testing.T) (*process, *dialogue, session) {
	t.Helper()
	p := command(t, append([]string{shunt, "run", "--"}, helperCommand("talk")...)...)
	d := p.dialogue(t)
	return p, d, sessionOf(t, d.next())
}

func TestNothingIsLeft(t *testing.T) {
	require(t)
	p, d, s := talking(t)
	s.complete(t)
	d.say("go")
	d.expect("exchange 1 done")
	d.end()
	if status := p.wait(t); status != 0 {
		t.Fatalf("%s: %s", describe(status), &p.err)
	}
	s.gone(t)
}

// The command fails to start: nothing is left either. A session's cgroup is
// below shunt's own, and goes after all else of it.
func TestNothingIsLeftOfAFailedStart(t *testing.T) {
	require(t)
	mount, err := kernel.Cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp(mount, "shunt-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	p := command(t, shunt, "run", "--", writeFile(t, "noise", "\x01\x02\x03", 0o755))
	p.SysProcAttr.UseCgroupFD, p.SysProcAttr.CgroupFD = true, int(fd.Fd())
	if status := p.run(t); status.ExitStatus() != 126 {
		t.Errorf("%s, want exit status 126", describe(status))
	}
	if err := os.Remove(parent); err != nil { // only an empty one can be removed
		t.Errorf("left below %s: %v", parent, err)
	}
}

func kill(t *testing.T, p *process) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(t); status.Signal() != unix.SIGKILL {
		t.Fatalf("%s, want killed", describe(status))
	}
}

func TestKilledInATransfer(t *testing.T) {
	require(t)
	// The shell says where it runs, then becomes the transfer.
	argv := append([]string{shunt, "run", "--", "sh", "-c", `sed -n s/^0:://p /proc/self/cgroup; exec "$@"`, "sh"}, helperCommand("transfer")...)
	p := command(t, argv...)
	d := p.dialogue(t)
	s := sessionOf(t, d.next()).complete(t)
	d.expect("quarter")
	kill(t, p) // the sender is ahead of the reader now
	d.expect("gate")
	atGate := s.status(t)
	if atGate == nil {
		t.Fatal("status does not know the session any more")
	}
	if atGate.Owned {
		t.Error("status: owned, though its shunt is dead")
	}
	if atGate.Mapped != 2 || atGate.Stats.Joined != 1 {
		t.Errorf("%d sockets in the map, want the transfer's two: %+v", atGate.Mapped, atGate.Stats)
	}

	// Whoever comes next leaves it alone while it is in use.
	command(t, shunt, "run", "--", "true").succeed(t)
	if left, want := s.left(), len(s.programs)+len(s.maps)+len(s.links)+2; len(left) != want {
		t.Errorf("%d of its %d things remain: %v", len(left), want, left)
	}

	d.say("go on")
	sent, received := d.next(), d.next()
	if want := strings.Replace(sent, "sent ", "received 536870912 ", 1); received != want || len(sent) < 64 {
		t.Errorf("%s, but %s", sent, received)
	}
	d.end()
	s.empty(t)
	after := s.status(t)
	if after == nil || after.Mapped != 0 {
		t.Fatalf("after its end: %+v", after)
	}
	if after.Stats.Redirected.Bytes <= atGate.Stats.Redirected.Bytes {
		t.Error("nothing went socket to socket without shunt")
	}
	t.Logf("socket to socket %d bytes, by the stack %v", after.Stats.Redirected.Bytes, after.Stats.Stack)
	command(t, shunt, "run", "--", "true").succeed(t)
	s.gone(t)
}

func TestTwoAtATime(t *testing.T) {
	require(t)
	a, da, sa := talking(t)
	b, db, sb := talking(t)
	sa.complete(t)
	sb.complete(t)
	da.say("go")
	db.say("go")
	da.expect("exchange 1 done")
	db.expect("exchange 1 done")
	da.end()
	if status := a.wait(t); status != 0 {
		t.Fatalf("the first: %s", describe(status))
	}
	sa.gone(t)
	before := sb.status(t)
	db.say("go")
	db.expect("exchange 2 done")
	after := sb.status(t)
	const bytes = 2 * talkMessages * clientSize
	if got := after.Stats.Redirected.Bytes - before.Stats.Redirected.Bytes; got != bytes {
		t.Errorf("after the first had ended, %d bytes of the second's %d went socket to socket", got, bytes)
	}
	if after.Stats.Connections != 1 || after.Stats.Joined != 1 {
		t.Errorf("the second counts %+v", after.Stats)
	}
	db.end()
	if status := b.wait(t); status != 0 {
		t.Fatalf("the second: %s", describe(status))
	}
	sb.gone(t)
}

func TestManyAtATime(t *testing.T) {
	require(t)
	var wg sync.WaitGroup
	for range 8 {
		p := command(t, append([]string{shunt, "run", "-q", "--"}, helperCommand("echo", "-messages=50")...)...).start(t)
		wg.Go(func() {
			if err := p.Wait(); err != nil || p.err.Len() > 0 {
				t.Errorf("%v: %s", err, &p.err)
			}
		})
	}
	wg.Wait()
}

// A daemon that the command leaves behind keeps its short path.
func TestDaemonIsLeftAlone(t *testing.T) {
	require(t)
	argv := append([]string{shunt, "run", "--", "sh", "-c", `exec 3<&0; "$@" <&3 3<&- & exit 5`, "sh"}, helperCommand("talk")...)
	p := command(t, argv...)
	d := p.dialogue(t)
	s := sessionOf(t, d.next()).complete(t)
	if status := p.wait(t); status.ExitStatus() != 5 {
		t.Errorf("%s, want exit status 5", describe(status))
	}
	if !strings.Contains(p.err.String(), s.cgroup+": still in use") {
		t.Errorf("stderr does not report the daemon: %q", &p.err)
	}
	for n := range 2 {
		d.say("go")
		d.expect([]string{"exchange 1 done", "exchange 2 done"}[n])
		command(t, shunt, "run", "-q", "--", "true").succeed(t)
	}
	i := s.status(t)
	if i == nil || i.Owned || i.Mapped != 2 || i.Stats.Redirected.Messages < 4*talkMessages-4 {
		t.Errorf("status: %+v", i)
	}
	d.end()
	s.empty(t)
	command(t, shunt, "run", "-q", "--", "true").succeed(t)
	s.gone(t)
}

// Whoever only looks must not be taken for an owner.
func TestLookingIsNotOwning(t *testing.T) {
	require(t)
	p, d, s := talking(t)
	kill(t, p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300 {
				list, err := node.Instances()
				if err != nil {
					t.Error(err)
				}
				for _, i := range list {
					if i.Name == s.name && i.Owned {
						t.Error("owned, though its shunt is dead")
						return
					}
				}
			}
		})
	}
	wg.Wait()
	d.end()
	s.empty(t)
	command(t, shunt, "run", "-q", "--", "true").succeed(t)
	s.gone(t)
}

// Someone else, as systemd at the end of a login, removed the cgroup.
func TestCgroupWasRemoved(t *testing.T) {
	require(t)
	p, d, s := talking(t)
	s.complete(t)
	kill(t, p)
	d.end()
	s.empty(t)
	if err := os.Remove(s.cgroup); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kernel has detached the programs", func() bool {
		l, err := link.LoadPinnedLink(filepath.Join(pins, s.name, "link-join"), nil)
		if err != nil {
			return true // another shunt run was faster
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Cgroup().CgroupId == 0
	})
	command(t, shunt, "run", "-q", "--", "true").succeed(t)
	s.gone(t)
}
