// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
)

// summary is what run --json writes.
type summary struct {
	Command []string    `json:"command"`
	Status  int         `json:"status"`
	Seconds float64     `json:"seconds"`
	Accel   accel.Stats `json:"accel"`
}

// decode is strict: an unknown or a second value is an error.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if d.More() {
		t.Fatalf("more than one value in %q", text)
	}
}

func readSummary(t *testing.T, path string) summary {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s summary
	decode(t, string(b), &s)
	return s
}

// accelerated runs a command under shunt, which must succeed, and returns its
// stdout and the summary.
func accelerated(t *testing.T, argv ...string) (string, summary) {
	t.Helper()
	return acceleratedWith(t, nil, argv...)
}

func acceleratedWith(t *testing.T, flags []string, argv ...string) (string, summary) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "summary.json")
	args := append([]string{shunt, "run", "--json", file}, flags...)
	out := command(t, append(append(args, "--"), argv...)...).succeed(t)
	return out, readSummary(t, file)
}

// leftEarly counts the reasons for which pairs left before either end was done.
func leftEarly(s accel.Stats) (n int) {
	for why := range s.Left {
		switch why {
		case "shutdown", "close", "stream": // plain TCP is the better path, or the only one left
		default:
			n++
		}
	}
	return n
}

func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitStatusIsTheCommands(t *testing.T) {
	require(t)
	notExecutable := writeFile(t, "file", "#!/bin/sh\n", 0o644)
	noFormat := writeFile(t, "noise", "\x01\x02\x03", 0o755)
	for _, c := range []struct {
		name   string
		argv   []string
		status int
		says   string // part of the only line on stderr
	}{
		{"true", []string{"true"}, 0, ""},
		{"3", []string{"sh", "-c", "exit 3"}, 3, ""},
		{"255", []string{"sh", "-c", "exit 255"}, 255, ""},
		{"not found", []string{"no-such-command-77"}, 127, "no-such-command-77: command not found"},
		{"no such path", []string{"./no/such/command"}, 127, "command not found"},
		{"not executable", []string{notExecutable}, 126, "permission denied"},
		{"directory", []string{"/etc"}, 126, "/etc: is a directory"},
		{"unknown format", []string{noFormat}, 126, "exec format error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := command(t, append([]string{shunt, "run", "-q", "--"}, c.argv...)...)
			if status := p.run(t); !status.Exited() || status.ExitStatus() != c.status {
				t.Errorf("%s, want exit status %d", describe(status), c.status)
			}
			checkComplaint(t, p, c.says)
		})
	}
}

// checkComplaint wants one line on stderr with these words, or nothing at all.
func checkComplaint(t *testing.T, p *process, words ...string) {
	t.Helper()
	text := p.err.String()
	if len(words) == 1 && words[0] == "" {
		if text != "" {
			t.Errorf("stderr: %q, want nothing", text)
		}
		return
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("stderr %q does not say %q", text, w)
		}
	}
	if !strings.HasPrefix(text, "shunt: ") || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
		t.Errorf("stderr is not one line of shunt's: %q", text)
	}
}

// SIGSEGV, SIGABRT, SIGQUIT and their like are the Go runtime's own business:
// it would print its goroutines instead of dying.
func TestDiesOfTheCommandsSignal(t *testing.T) {
	require(t)
	for _, sig := range []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGKILL,
		unix.SIGUSR1, unix.SIGSEGV, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGXCPU, unix.SIGSYS,
	} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "summary.json")
			p := command(t, shunt, "run", "-q", "--json", file, "--", "sh", "-c", fmt.Sprintf("ulimit -c 0; kill -%d $$", sig))
			p.Dir = t.TempDir()
			if status := p.run(t); !status.Signaled() || status.Signal() != sig {
				t.Errorf("shunt: %s, want killed by %s", describe(status), sig)
			}
			checkComplaint(t, p, "")
			if got, want := readSummary(t, file).Status, 128+int(sig); got != want {
				t.Errorf("status %d in the summary, want %d", got, want)
			}
			if left, err := os.ReadDir(p.Dir); err != nil || len(left) > 0 {
				t.Errorf("left in the working directory: %v, %v", left, err)
			}
		})
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	require(t)
	p := command(t, append([]string{shunt, "run", "-q", "--"}, helperCommand("signals")...)...)
	d := p.dialogue(t)
	d.expect("ready")
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGALRM, unix.SIGWINCH, unix.SIGUSR2} {
		if err := p.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		d.expect(unix.SignalName(sig))
	}
	d.end()
	if status := p.wait(t); status.ExitStatus() != 7 {
		t.Errorf("%s, want exit status 7", describe(status))
	}
}

// As with nohup, and for what a shell runs in the background.
func TestIgnoredSignalsStayIgnored(t *testing.T) {
	require(t)
	script := `trap "" HUP INT; exec "$@"`
	ask := []string{"grep", "SigIgn", "/proc/self/status"}
	plain := command(t, append([]string{"sh", "-c", script, "sh"}, ask...)...).succeed(t)
	under := command(t, append([]string{"sh", "-c", script, "sh", shunt, "run", "-q", "--"}, ask...)...).succeed(t)
	if plain != under {
		t.Errorf("ignored by the command: %q, without shunt %q", under, plain)
	}
}

// What the command inherits is what it would have without shunt.
func TestCommandSeesNoDifference(t *testing.T) {
	require(t)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	var files []*os.File
	for _, name := range []string{in, out} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	r, w := pipe(t)
	defer r.Close()
	var seen [2]any
	for i, before := range [][]string{nil, {shunt, "run", "-q", "--"}} {
		report := filepath.Join(dir, "report")
		argv := append(before, helperCommand("identity", report, "an argument", "--json", "-q", "", "--")...)
		// The report's name is the same in both, the limits are unusual ones.
		p := command(t, append([]string{"sh", "-c", `ulimit -Sn 333; ulimit -Sc 0; umask 0137; exec "$@"`, "sh"}, argv...)...)
		p.Dir = dir
		p.Env = []string{"A=1", "EMPTY=", "PATH=" + os.Getenv("PATH"), "PWD=" + dir, "A=2", "UTF=größer"}
		p.Stdin, p.Stdout, p.Stderr = files[0], files[1], w
		p.ExtraFiles = []*os.File{files[1]}
		if status := p.run(t); status != 0 {
			t.Fatalf("run %d: %s", i, describe(status))
		}
		b, err := os.ReadFile(report)
		if err != nil {
			t.Fatal(err)
		}
		decode(t, string(b), &seen[i])
	}
	if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
		t.Errorf("without shunt (-), with it (+):\n%s", diff)
	}
}

// Data passes through shunt untouched because it does not pass through shunt.
func TestStdioPassesThrough(t *testing.T) {
	require(t)
	p := command(t, shunt, "run", "--", "sh", "-c", "cat; echo problem >&2")
	p.Stdin = strings.NewReader("a\x00b\n")
	if got := p.succeed(t); got != "a\x00b\n" {
		t.Errorf("stdout %q", got)
	}
	if !strings.HasPrefix(p.err.String(), "problem\nshunt: ") {
		t.Errorf("stderr %q", &p.err)
	}
}

func TestSummaryCounts(t *testing.T) {
	require(t)
	const connections, messages, size = 7, 300, 100
	argv := helperCommand("echo", "-connections=7", "-messages=300", "-size=100")
	file := filepath.Join(t.TempDir(), "summary.json")
	p := command(t, append([]string{shunt, "run", "--json", file, "--"}, argv...)...)
	if out := p.succeed(t); out != "" {
		t.Errorf("stdout %q, want nothing", out)
	}
	s := readSummary(t, file)
	if diff := cmp.Diff(argv, s.Command); diff != "" {
		t.Errorf("command: %s", diff)
	}
	a, stack := s.Accel, s.Accel.StackTotal()
	if a.Connections != connections || a.Joined != connections || len(a.NotJoined)+leftEarly(a)+len(a.Faults) > 0 {
		t.Errorf("want %d connections, all joined to their end: %+v", connections, a)
	}
	if got, want := a.Redirected.Messages+stack.Messages, uint64(2*connections*messages); got != want {
		t.Errorf("%d messages, sent were %d", got, want)
	}
	if got, want := a.Redirected.Bytes+stack.Bytes, uint64(2*connections*messages*size); got != want {
		t.Errorf("%d bytes, sent were %d", got, want)
	}
	if s.Status != 0 || s.Seconds <= 0 || s.Seconds > patience.Seconds() {
		t.Errorf("status %d after %f s", s.Status, s.Seconds)
	}
	// One short block, for people.
	block := lines(p.err.String())
	if want := fmt.Sprintf("shunt: %d of %d connections joined", connections, connections); !strings.HasPrefix(block[0], want) {
		t.Errorf("the summary starts with %q, want %q", block[0], want)
	}
	for _, l := range block {
		if !strings.HasPrefix(l, "shunt: ") {
			t.Errorf("a line of the summary does not say whose it is: %q", l)
		}
	}
	if len(block) > 4 {
		t.Errorf("the summary of an ordinary run has %d lines:\n%s", len(block), &p.err)
	}
}

func TestQuiet(t *testing.T) {
	require(t)
	p := command(t, append([]string{shunt, "run", "-q", "--"}, helperCommand("echo")...)...)
	if out := p.succeed(t); out != "" || p.err.String() != "" {
		t.Errorf("stdout %q, stderr %q, want nothing", out, &p.err)
	}
}

func TestChildrenAreIncluded(t *testing.T) {
	require(t)
	const connections = 3
	_, s := accelerated(t, helperCommand("echo", "-grandchild", "-connections=3")...)
	if s.Accel.Connections != connections || s.Accel.Joined != connections {
		t.Errorf("want %d connections joined: %+v", connections, s.Accel)
	}
	sent := uint64(2 * connections * clientMessages * clientSize)
	if total := s.Accel.Redirected.Bytes + s.Accel.StackTotal().Bytes; total != sent || s.Accel.Redirected.Bytes < sent*9/10 {
		t.Errorf("sent were %d bytes: %+v", sent, s.Accel)
	}
}

// A shunt within a shunt, as when a script that uses it is itself run under it.
func TestNested(t *testing.T) {
	require(t)
	inner := filepath.Join(t.TempDir(), "inner.json")
	argv := append([]string{shunt, "run", "-q", "--json", inner, "--"}, helperCommand("echo", "-messages=100")...)
	_, outer := accelerated(t, argv...)
	if in := readSummary(t, inner); in.Accel.Joined+outer.Accel.Joined != 1 {
		t.Errorf("joined %d times inside, %d times outside, want once", in.Accel.Joined, outer.Accel.Joined)
	}
}

// Each is refused before the command starts.
func TestBadInput(t *testing.T) {
	require(t)
	mark := filepath.Join(t.TempDir(), "ran")
	touch := []string{"--", "touch", mark}
	for _, c := range []struct {
		name  string
		flags []string
		says  []string
	}{
		{"unknown flag", []string{"--no-such-flag"}, []string{"unknown flag: --no-such-flag", "shunt run --help"}},
		{"unknown short flag", []string{"-x"}, []string{"unknown shorthand flag", "shunt run --help"}},
		{"unknown guarantee", []string{"--accept", "G1"}, []string{`"G1"`, "G4, G5 and G6"}},
		{"no guarantee", []string{"--accept", "fast"}, []string{`"fast"`, "G4, G5 and G6"}},
		{"queue 0", []string{"--max-queue", "0"}, []string{"--max-queue", `"0"`, "1KiB to 1GiB"}},
		{"queue below", []string{"--max-queue=-1"}, []string{"--max-queue", `"-1"`, "1KiB to 1GiB"}},
		{"queue above", []string{"--max-queue", "1048577"}, []string{"--max-queue", `"1048577"`, "1KiB to 1GiB"}},
		{"queue text", []string{"--max-queue", "4M"}, []string{"--max-queue", `"4M"`, "KiB, MiB or GiB"}},
		{"unwritable summary", []string{"--json", "/no/such/dir/summary.json"}, []string{"--json", "/no/such/dir/summary.json"}},
		{"summary is a directory", []string{"--json", "/"}, []string{"--json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := command(t, append(append([]string{shunt, "run"}, c.flags...), touch...)...)
			refused(t, p, c.says...)
			if _, err := os.Stat(mark); !os.IsNotExist(err) {
				t.Errorf("the command ran: %v", err)
			}
		})
	}
	for name, argv := range map[string][]string{
		"no command":       {"run"},
		"nothing after --": {"run", "--"},
		"bad format":       {"status", "-o", "xml"},
		"doctor's format":  {"doctor", "-o", "xml"},
		"unknown bench":    {"bench", "foo"},
		"superfluous":      {"status", "it"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, command(t, append([]string{shunt}, argv...)...), "shunt: ")
		})
	}
}

// refused wants exit status 1, one line on stderr with these words, nothing on stdout.
func refused(t *testing.T, p *process, words ...string) {
	t.Helper()
	if status := p.run(t); !status.Exited() || status.ExitStatus() != 1 {
		t.Errorf("%s, want exit status 1", describe(status))
	}
	checkComplaint(t, p, words...)
	if p.out.Len() > 0 {
		t.Errorf("stdout: %q", &p.out)
	}
}

func TestWithoutRoot(t *testing.T) {
	require(t)
	p := command(t, shunt, "run", "--", "echo", "ran")
	p.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	p.Dir = "/"
	refused(t, p, "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "root")
}

// Root in name only: one capability is missing.
func TestWithoutOneCapability(t *testing.T) {
	require(t, "setpriv")
	refused(t, command(t, "setpriv", "--bounding-set", "-net_admin", shunt, "run", "--", "echo", "ran"), "missing CAP_NET_ADMIN:", "root")
}

// What cannot be told from a missing file must not be told as one.
func TestWithoutCgroup2(t *testing.T) {
	require(t, "unshare", "findmnt")
	script := `findmnt -rnt cgroup2 -o TARGET | tac | while read -r dir; do umount -l "$dir" || exit; done; exec "$@"`
	refused(t, command(t, "unshare", "--mount", "sh", "-c", script, "sh", shunt, "run", "--", "echo", "ran"), "no cgroup2", "mount -t cgroup2")
}

// In a terminal the command and shunt are one process group: the terminal
// tells both, and shunt must not tell the command again.
func TestTerminal(t *testing.T) {
	require(t)
	t.Run("each Ctrl-C once", func(t *testing.T) {
		p, d, press := terminal(t, helperCommand("signals")...)
		d.expect("ready")
		const times = 20
		for range times {
			press("\x03")
			d.expect("SIGINT")
		}
		press("\x1c")
		d.expect("SIGQUIT")
		// Passed on in order: whatever shunt did about the others is done.
		if err := p.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		d.expect("SIGUSR1")
		if err := p.Process.Signal(unix.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		d.expect("SIGUSR2")
		if status := p.wait(t); status.ExitStatus() != 7 {
			t.Errorf("%s, want exit status 7", describe(status))
		}
	})
	t.Run("Ctrl-C ends it", func(t *testing.T) {
		p, d, press := terminal(t, "sh", "-c", "echo ready; exec sleep 60")
		d.expect("ready")
		press("\x03")
		if status := p.wait(t); !status.Signaled() || status.Signal() != unix.SIGINT {
			t.Errorf("%s, want killed by SIGINT", describe(status))
		}
	})
	t.Run("the line goes", func(t *testing.T) {
		p, d, _ := terminal(t, "sh", "-c", "echo ready; exec sleep 60")
		d.expect("ready")
		d.in.Close()
		if status := p.wait(t); !status.Signaled() || status.Signal() != unix.SIGHUP {
			t.Errorf("%s, want killed by SIGHUP", describe(status))
		}
	})
}

// terminal starts shunt run -q in the foreground of a new terminal; press types.
func terminal(t *testing.T, argv ...string) (p *process, d *dialogue, press func(string)) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	// Not through Fd, which would make it blocking: a Close would wait for a Read.
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if e := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	// No echo of what is typed, no CR before LF: lines are what the command prints.
	mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag &^= unix.ECHO
	mode.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	p = command(t, append([]string{shunt, "run", "-q", "--"}, argv...)...)
	p.Stdin, p.Stdout, p.Stderr = tty, tty, tty
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	p.start(t)
	d = newDialogue(t, master, master)
	press = func(keys string) {
		t.Helper()
		if _, err := master.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	return p, d, press
}
