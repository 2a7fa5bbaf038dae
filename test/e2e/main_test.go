// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the shunt binary as a user does, with real programs, and
// looks at what they saw, at the wire, and at what is left in the kernel.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait: far above what any of them takes.
const patience = 30 * time.Second

var (
	shunt string // the binary under test
	self  string // this test binary, which is also the commands it runs: see helper_test.go
)

func TestMain(m *testing.M) {
	var err error
	if self, err = os.Executable(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		if err := helper(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		return
	}
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	dir, err := os.MkdirTemp("", "shunt-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // one test runs it as another user
		return 1, err
	}
	shunt = filepath.Join(dir, "shunt")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", shunt, "../../cmd/shunt")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build shunt: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// require skips the test unless it can run here, as root and with the programs
// it needs; where nothing may be skipped it fails.
func require(t *testing.T, programs ...string) {
	t.Helper()
	lack := ""
	if os.Geteuid() != 0 {
		lack = "needs root, to load BPF and make cgroups"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			lack = "needs " + p + " (make deps)"
		}
	}
	switch {
	case lack == "":
	case os.Getenv("SHUNT_REQUIRE_ALL") == "1":
		t.Fatal("SHUNT_REQUIRE_ALL=1, but: " + lack)
	default:
		t.Skip(lack)
	}
}

// process is a started program in a session (setsid) of its own.
type process struct {
	*exec.Cmd
	out, err bytes.Buffer
}

// command prepares a program that is killed, with all in its process group,
// when the test ends or patience does.
func command(t *testing.T, argv ...string) *process {
	t.Helper()
	return commandWithin(t, patience, argv...)
}

func commandWithin(t *testing.T, limit time.Duration, argv ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	p := &process{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p.Stdout, p.Stderr = &p.out, &p.err
	// A daemon may hold the pipes open; nobody waits for it here.
	p.WaitDelay = time.Second
	p.Cancel = func() error { return unix.Kill(-p.Process.Pid, unix.SIGKILL) }
	t.Cleanup(func() {
		if p.Process != nil {
			unix.Kill(-p.Process.Pid, unix.SIGKILL) //nolint:errcheck // normally nobody is left
		}
		cancel()
	})
	return p
}

func (p *process) start(t *testing.T) *process {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatalf("start %v: %v", p.Args, err)
	}
	return p
}

// wait waits for the end and returns how it ended.
func (p *process) wait(t *testing.T) syscall.WaitStatus {
	t.Helper()
	err := p.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s%s", p.Args, err, &p.out, &p.err)
	}
	return p.ProcessState.Sys().(syscall.WaitStatus)
}

func (p *process) run(t *testing.T) syscall.WaitStatus {
	t.Helper()
	return p.start(t).wait(t)
}

// succeed is run for what has to exit with 0; it returns stdout.
func (p *process) succeed(t *testing.T) string {
	t.Helper()
	if status := p.run(t); status != 0 {
		t.Fatalf("%v: %s\nstdout: %s\nstderr: %s", p.Args, describe(status), &p.out, &p.err)
	}
	return p.out.String()
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// dialogue gives the process stdin and stdout pipes to talk through. They are
// the very files of whatever it starts too, and outlive it.
func (p *process) dialogue(t *testing.T) *dialogue {
	t.Helper()
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	p.Stdin, p.Stdout = inR, outW
	p.start(t)
	inR.Close()
	outW.Close()
	return newDialogue(t, inW, outR)
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// dialogue is a conversation in lines.
type dialogue struct {
	t     *testing.T
	in    io.WriteCloser
	lines chan string
}

func newDialogue(t *testing.T, in io.WriteCloser, out io.Reader) *dialogue {
	d := &dialogue{t, in, make(chan string, 1024)}
	go readLines(out, d.lines)
	return d
}

// next returns the next line, or fails.
func (d *dialogue) next() string {
	d.t.Helper()
	select {
	case l, ok := <-d.lines:
		if !ok {
			d.t.Fatal("the command ended early")
		}
		return l
	case <-time.After(patience):
		d.t.Fatal("no line from the command in time")
	}
	return ""
}

func (d *dialogue) expect(want string) {
	d.t.Helper()
	if got := d.next(); got != want {
		d.t.Fatalf("the command said %q, want %q", got, want)
	}
}

func (d *dialogue) say(line string) {
	d.t.Helper()
	if _, err := io.WriteString(d.in, line+"\n"); err != nil {
		d.t.Fatal(err)
	}
}

// end closes the command's stdin and waits until nobody has its stdout open.
func (d *dialogue) end() {
	d.t.Helper()
	d.in.Close()
	for timeout := time.After(patience); ; {
		select {
		case l, ok := <-d.lines:
			if !ok {
				return
			}
			d.t.Fatalf("unexpected line %q", l)
		case <-timeout:
			d.t.Fatal("the command did not end in time")
		}
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// freePort finds a TCP port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func lines(s string) []string {
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}
