// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/api"
)

// shunt runs the command line in a process of its own.
func shunt(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), cliEnv+"=1")
	return cmd
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestCommands is an agent as systemd sees it, and the commands beside it.
func TestCommands(t *testing.T) {
	p := newPlace(t)
	dir := t.TempDir()
	file, other, socket := filepath.Join(dir, "shunt.yaml"), filepath.Join(dir, "other.yaml"), filepath.Join(dir, "run", "agent.sock")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := "apiVersion: shunt/v1\naccel: {select: [{cgroup: " + p.path("") + "}]}\n"
	write(file, "apiVersion: shunt/v1\n")
	write(other, all)

	// Nobody there yet.
	for _, command := range []string{"apply", "diff"} {
		out, err := shunt(command, "--socket", socket, other).CombinedOutput()
		if exitCode(err) != 1 || !strings.Contains(string(out), "no agent") {
			t.Errorf("%s without an agent: %v: %s", command, err, out)
		}
	}

	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	hears := func(want string) string {
		t.Helper()
		buf := make([]byte, 4096)
		for {
			if err := told.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, err := told.Read(buf)
			if err != nil {
				t.Fatalf("systemd does not hear %s: %v", want, err)
			}
			if regexp.MustCompile(want).Match(buf[:n]) {
				return string(buf[:n])
			}
		}
	}
	var log bytes.Buffer
	agent := shunt("agent", "--config", file, "--socket", socket, "--cgroup-root", p.cgroup, "--pin-root", p.pins)
	agent.Env = append(agent.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=2000000")
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer agent.Process.Kill() //nolint:errcheck // it has ended
	hears("^READY=1\n")
	hears("^WATCHDOG=1")
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}

	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	joined := func() uint64 {
		t.Helper()
		id := client.must("dial %s", addr)
		client.must("exchange %s 2 500", id)
		client.must("close %s", id)
		s, err := api.NewClient(socket).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Stats.Joined
	}
	if n := joined(); n != 0 {
		t.Errorf("joined %d with nothing selected", n)
	}
	// diff says 2, apply 0 and the same changes; then there is no difference.
	differs, err := shunt("diff", "--socket", socket, other).Output()
	if exitCode(err) != 2 || len(differs) == 0 {
		t.Errorf("diff: %v: %s", err, differs)
	}
	if n := joined(); n != 0 {
		t.Errorf("joined %d after diff", n)
	}
	applied, err := shunt("apply", "--socket", socket, other).Output()
	if exitCode(err) != 0 || !bytes.Equal(applied, differs) {
		t.Errorf("apply: %v: %s, diff said: %s", err, applied, differs)
	}
	if n := joined(); n != 1 {
		t.Errorf("joined %d after apply", n)
	}
	if out, err := shunt("diff", "--socket", socket, other).Output(); exitCode(err) != 0 {
		t.Errorf("diff after apply: %v: %s", err, out)
	}
	// A mistake, by either way: what was in force stays.
	write(file, "apiVersion: [\n")
	if err := agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	hears(`^RELOADING=1\nMONOTONIC_USEC=\d+$`)
	hears("^READY=1\nSTATUS=.*refused")
	out, err := shunt("apply", "--socket", socket, file).CombinedOutput()
	if exitCode(err) != 1 || !regexp.MustCompile(regexp.QuoteMeta(file)+`:\d+:\d+: `).Match(out) {
		t.Errorf("apply of a mistake: %v: %s", err, out)
	}
	if n := joined(); n != 2 {
		t.Errorf("joined %d after a refused reload", n)
	}
	// The file again: nothing selected.
	write(file, "apiVersion: shunt/v1\n")
	if err := agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	hears("^READY=1\nSTATUS=running$")
	if n := joined(); n != 2 {
		t.Errorf("joined %d after a reload that selects nothing", n)
	}
	if out, err := shunt("apply", "--socket", socket, other).CombinedOutput(); err != nil {
		t.Fatalf("apply: %v: %s", err, out)
	}

	id := client.must("dial %s", addr)
	client.must("exchange %s 20 500", id)
	if out, err := shunt("unload", "--pin-root", p.pins).CombinedOutput(); exitCode(err) != 1 || !strings.Contains(string(out), "running") {
		t.Errorf("unload beside the agent: %v: %s", err, out)
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("^STOPPING=1")
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent ends with %v: %s", err, log.String())
	}
	if !regexp.MustCompile(regexp.QuoteMeta(file) + `:\d+:\d+`).MatchString(log.String()) {
		t.Errorf("the mistake is not in the log with its place: %s", log.String())
	}
	// The data path is still there, until unload.
	late := client.must("dial %s", addr)
	client.must("exchange %s 20 500", late)
	if entries, err := os.ReadDir(filepath.Join(p.pins, "agent")); err != nil || len(entries) == 0 {
		t.Errorf("the pins are gone: %v", err)
	}
	if out, err := shunt("unload", "--pin-root", p.pins).CombinedOutput(); err != nil {
		t.Errorf("unload: %v: %s", err, out)
	}
	if _, err := os.Stat(p.pins); err == nil {
		t.Error("pins are left after unload")
	}
	for _, c := range []string{id, late} {
		client.must("exchange %s 20 500", c)
	}
	// Of nothing, it is fine too.
	if out, err := shunt("unload", "--pin-root", p.pins).CombinedOutput(); err != nil {
		t.Errorf("unload of nothing: %v: %s", err, out)
	}
}

// TestKilledAgent: kill -9 leaves the data path, and the next one adopts it.
func TestKilledAgent(t *testing.T) {
	p := newPlace(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "shunt.yaml"), filepath.Join(dir, "agent.sock")
	yaml := fmt.Sprintf("apiVersion: shunt/v1\naccel: {select: [{cgroup: %s}]}\n", p.path(""))
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	server, client := p.peer("srv"), p.peer("cli")
	addr := server.must("listen 127.0.0.1:0 echo")
	var id string
	for round := range 4 {
		agent := shunt("agent", "--config", file, "--socket", socket, "--cgroup-root", p.cgroup, "--pin-root", p.pins)
		agent.Stderr = os.Stderr
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		p.until("the agent answers", func() bool {
			s, err := api.NewClient(socket).Status(t.Context())
			return err == nil && s.Adopted == (round > 0) && s.PID == agent.Process.Pid
		})
		if round == 0 {
			id = client.must("dial %s", addr)
			client.must("run %s", id)
		}
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		agent.Wait() //nolint:errcheck // killed
	}
	if rounds := client.must("stop %s", id); rounds == "0" {
		t.Error("the connection stood still")
	}
	a := p.agent(strings.TrimPrefix(yaml, "apiVersion: shunt/v1\n"))
	if s := stats(t, a); s.Joined != 1 || s.Left["unload"] != 0 {
		t.Errorf("after four kills: %+v", s)
	}
	a.Close()
}

// TestCapabilities: those of the unit are enough, also to guard the devices of
// another user's process in a namespace of its own.
func TestCapabilities(t *testing.T) {
	p := newPlace(t)
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("setpriv (util-linux) is not here")
	}
	unit, err := os.ReadFile("../../deploy/shunt.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit has no bounding set")
	}
	set := "-all"
	for _, c := range strings.Fields(string(m[1])) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "shunt.yaml"), filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(file, []byte("apiVersion: shunt/v1\naccel: {select: [{cgroup: "+p.path("")+"}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	peer := p.peer("nobody", func(a *syscall.SysProcAttr) {
		a.Cloneflags = syscall.CLONE_NEWNET
		a.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		a.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN} // to bring lo up
	})
	peer.must("up")
	agent := exec.Command(setpriv, "--bounding-set="+set, "--inh-caps=-all", "--no-new-privs",
		"/proc/self/exe", "agent", "--config", file, "--socket", socket, "--cgroup-root", p.cgroup, "--pin-root", p.pins)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agent.Args[4] = self
	agent.Env = append(os.Environ(), cliEnv+"=1")
	var log bytes.Buffer
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		agent.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		if err := agent.Wait(); err != nil {
			t.Errorf("the agent ends with %v: %s", err, log.String())
		}
	}()
	client := api.NewClient(socket)
	p.until("the agent answers", func() bool {
		_, err := client.Status(t.Context())
		return err == nil
	})
	addr := peer.must("listen 127.0.0.1:0 echo")
	p.until("bytes go from socket to socket", func() bool {
		id := peer.must("dial %s", addr)
		peer.must("exchange %s 3 1000", id)
		peer.must("close %s", id)
		s, err := client.Status(t.Context())
		return err == nil && s.Stats.Redirected.Bytes > 0
	})
}

// TestUnit: systemd takes the unit file as it is.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	unit, err := os.ReadFile("../../deploy/shunt.service")
	if err != nil {
		t.Fatal(err)
	}
	// It looks whether the program exists, which is not installed here.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tested := strings.Replace(string(unit), "/usr/local/bin/shunt", self, 1)
	for _, c := range []struct {
		text string
		ok   bool
	}{{tested, true}, {tested + "\n[Service]\nProtectSystem=perhaps\n", false}} {
		path := filepath.Join(t.TempDir(), "shunt.service")
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		if fine := err == nil && len(out) == 0; fine != c.ok {
			t.Errorf("fine %v, want %v: %v: %s", fine, c.ok, err, out)
		}
	}
}
