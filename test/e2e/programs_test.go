// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
)

// outcome is what a whole program did: it has to be the same with and without
// shunt. Note is for the log.
type outcome struct {
	Results map[string]string
	Note    string
}

// program is one use of a program that nobody here wrote.
type program struct {
	needs   []string // programs on the machine
	runtime bool     // they are language runtimes: without them the test is skipped
	use     func(dir string) (outcome, error)
	// blocking: the program's sockets are blocking, so that shunt has to leave
	// all of its connections alone. Otherwise some must be joined.
	blocking bool
	// joinedOnly: it reads with splice(2), which never finds what went socket to
	// socket, or turns its sockets to blocking later. That it is joined is all
	// that is asked for.
	joinedOnly bool
	// fionread: it goes by FIONREAD, as nginx behind a proxy.
	fionread bool
	// known is the limit in docs/accel.md that makes it fail under shunt: then
	// that is a skip, which says what happened. Without shunt it has to work.
	known string
}

var programs = map[string]program{
	"haproxy":               {needs: []string{"haproxy", "nginx"}, use: haproxyWith(), fionread: true, known: halfClosedProxy},
	"haproxy splice-auto":   {needs: []string{"haproxy", "nginx"}, use: haproxyWith("splice-auto"), joinedOnly: true, known: spliceAfterRecv},
	"haproxy splice-always": {needs: []string{"haproxy", "nginx"}, use: haproxyWith("splice-request", "splice-response"), joinedOnly: true, known: spliceAfterRecv},
	"go proxy":              {use: goProxy, joinedOnly: true},
	"socat":                 {needs: []string{"socat"}, use: socat, blocking: true},
	"postgresql":            {use: postgresql, blocking: true},
	"node":                  {needs: []string{"node"}, runtime: true, use: nodeEcho},
	"java":                  {needs: []string{"java"}, runtime: true, use: javaEcho, joinedOnly: true},
	"iperf3":                {needs: []string{"iperf3"}, use: iperf3, blocking: true},
	"redis, every test":     {needs: []string{"redis-server", "redis-benchmark", "redis-cli"}, use: redisAll},
}

const (
	spliceAfterRecv = "splice after recv"
	halfClosedProxy = "a proxy between half-closing ends"
)

// runProgram is a helper: it uses a program in a directory.
func runProgram(args []string) error {
	out, err := programs[args[0]].use(args[1])
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// Whole programs do the same with and without shunt, and every byte of every
// body is what was sent.
func TestPrograms(t *testing.T) {
	for name, p := range programs {
		t.Run(name, func(t *testing.T) {
			if p.runtime {
				for _, n := range p.needs {
					if _, err := exec.LookPath(n); err != nil {
						t.Skipf("no %s here; only machines that have it run this", n)
					}
				}
			}
			require(t, p.needs...)
			var plain, short outcome
			decode(t, commandWithin(t, 4*patience, helperCommand("program", name, programDir(t))...).succeed(t), &plain)
			file := filepath.Join(t.TempDir(), "summary.json")
			argv := []string{shunt, "run", "--json", file}
			if p.fionread && kernel.CheckFIONREAD() != nil {
				argv = append(argv, "--accept", "G5", "--max-queue", "65536") // what doctor advises
			}
			run := commandWithin(t, 4*patience, append(append(argv, "--"), helperCommand("program", name, programDir(t))...)...)
			if status := run.run(t); status != 0 {
				if p.known != "" {
					t.Skipf("known limit, %s: %s", p.known, &run.err)
				}
				t.Fatalf("under shunt: %s: %s", describe(status), &run.err)
			}
			out, s := run.out.String(), readSummary(t, file)
			decode(t, out, &short)
			if len(plain.Results) == 0 {
				t.Fatal("nothing was looked at")
			}
			if diff := cmp.Diff(plain.Results, short.Results); diff != "" {
				t.Errorf("plain (-) and under shunt (+) differ:\n%s", diff)
			}
			checkShare(t, p, s.Accel)
			t.Logf("plain: %s", plain.Note)
			t.Logf("shunt: %s; %d of %d connections joined, not joined %v, left %v; socket to socket %d messages, %d bytes; by the stack %v",
				short.Note, s.Accel.Joined, s.Accel.Connections, s.Accel.NotJoined, s.Accel.Left,
				s.Accel.Redirected.Messages, s.Accel.Redirected.Bytes, s.Accel.Stack)
		})
	}
}

// checkShare asks for what shunt has to say of a program.
func checkShare(t *testing.T, p program, a accel.Stats) {
	t.Helper()
	if a.Connections == 0 || len(a.Faults) > 0 {
		t.Errorf("no connections seen, or failed kernel calls: %+v", a)
	}
	var refused uint64
	for _, n := range a.NotJoined {
		refused += n
	}
	if a.Joined+refused != a.Connections {
		t.Errorf("%d joined and %d not, of %d connections", a.Joined, refused, a.Connections)
	}
	switch {
	case p.blocking:
		if a.Joined != 0 || a.NotJoined["blocking"] == 0 || a.Redirected.Bytes != 0 {
			t.Errorf("blocking sockets were not left alone: %+v", a)
		}
	case a.Joined == 0:
		t.Errorf("no connection was joined: %+v", a)
	case !p.joinedOnly && a.Redirected.Bytes == 0:
		t.Errorf("nothing went socket to socket: %+v", a)
	}
}

// programDir is a directory that other users can enter too.
func programDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shunt-e2e-program-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// withServers starts servers, one after the other, uses them and stops them in
// reverse order. Each is a ready line of its output and its command.
func withServers(use func() error, servers ...[]string) (err error) {
	for _, s := range servers {
		stop, err := server(s[0], s[1:]...)
		if err != nil {
			return err
		}
		use = func(inner func() error) func() error {
			return func() error { return errors.Join(inner(), terminated(stop())) }
		}(use)
	}
	return use()
}

// terminated takes being ended by our SIGTERM for a good end.
func terminated(err error) error {
	if err != nil && (strings.Contains(err.Error(), "signal: terminated") || strings.Contains(err.Error(), "exit status 143")) {
		return nil
	}
	return err
}

// run runs a command to its end and returns its stdout.
func run(stdin string, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s%s", argv, err, out, &stderr)
	}
	return string(out), nil
}

// ports finds n free ports of 127.0.0.1, all different.
func ports(n int) ([]int, error) {
	var found []int
	for range n {
		l, err := listenLoopback()
		if err != nil {
			return nil, err
		}
		defer l.Close()
		found = append(found, portOf(l))
	}
	return found, nil
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func writeIn(dir, name, content string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}
