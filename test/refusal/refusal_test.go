// SPDX-License-Identifier: Apache-2.0

// Package refusal asks for one thing that must be true on every kernel: either
// doctor finds nothing missing and `shunt run` runs, or it names what is missing
// and `shunt run` refuses, says why, starts nothing and leaves nothing behind.
package refusal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/shuntnet/shunt/internal/kernel"
)

const (
	binaryEnv = "SHUNT_TEST_BINARY" // a shunt to test; otherwise one is built
	aloneEnv  = "SHUNT_TEST_ALONE"  // nothing else on the machine loads BPF programs
	pins      = "/sys/fs/bpf/shunt/accel"
)

// patience bounds every wait.
var patience = 30 * time.Second

var shunt string

func TestMain(m *testing.M) {
	if n, err := strconv.Atoi(os.Getenv("SHUNT_TEST_PATIENCE")); err == nil && n > 0 {
		patience *= time.Duration(n)
	}
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (int, error) {
	if shunt = os.Getenv(binaryEnv); shunt != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "shunt-refusal-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	shunt = filepath.Join(dir, "shunt")
	if out, err := exec.Command("go", "build", "-o", shunt, "../../cmd/shunt").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build shunt: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// place is a cgroup for shunt to run in, so that other sessions of the machine
// are not taken for its own.
type place struct {
	t   *testing.T
	dir *os.File
}

func newPlace(t *testing.T) place {
	t.Helper()
	needRoot(t)
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.MkdirTemp(own, "refusal-test-")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(dir.Close(), os.Remove(name)); err != nil {
			t.Error(err)
		}
	})
	return place{t, dir}
}

// call runs shunt there and returns its exit status.
func (p place) call(args ...string) (status int, stdout, stderr string) {
	t := p.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, shunt, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(p.dir.Fd())}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("shunt %s: %v, %v", strings.Join(args, " "), err, ctx.Err())
	}
	return cmd.ProcessState.ExitCode(), out.String(), complaints.String()
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SHUNT_REQUIRE_ALL") == "1" {
		t.Fatal("SHUNT_REQUIRE_ALL=1, but this test needs root")
	}
	t.Skip("needs root")
}

// missing is what doctor says cannot be had here.
func (p place) missing() []kernel.Check {
	t := p.t
	t.Helper()
	status, out, complaints := p.call("doctor", "-o", "json")
	var r struct {
		Fail   int
		Checks []kernel.Check
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("doctor: %v\n%s%s", err, out, complaints)
	}
	bad := slices.DeleteFunc(r.Checks, func(c kernel.Check) bool { return c.Status != kernel.Fail })
	if (status != 0) != (len(bad) > 0) || r.Fail != len(bad) {
		t.Errorf("doctor exits with %d, counts %d failures and lists %d", status, r.Fail, len(bad))
	}
	for _, c := range bad {
		t.Logf("missing: %s: %s", c.Name, c.Detail)
		if c.Fix == "" {
			t.Errorf("doctor says no word about what to do about %s", c.Name)
		}
	}
	return bad
}

// left is what a run must not leave behind: cgroups, and where nobody else is
// there, pins and programs.
func (p place) left() map[string]bool {
	t := p.t
	t.Helper()
	found := map[string]bool{}
	patterns := []string{filepath.Join(p.dir.Name(), "shunt-*")}
	if os.Getenv(aloneEnv) != "" {
		patterns = append(patterns, filepath.Join(pins, "*"))
	}
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			found[n] = true
		}
	}
	if os.Getenv(aloneEnv) == "" {
		return found
	}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		found[fmt.Sprintf("program %d", id)] = true
	}
}

// nothingNew waits until nothing is there that was not before: the kernel frees
// programs a little later.
func (p place) nothingNew(before map[string]bool) {
	t := p.t
	t.Helper()
	var more []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		more = more[:0]
		for name := range p.left() {
			if !before[name] {
				more = append(more, name)
			}
		}
		if len(more) == 0 {
			return
		}
	}
	t.Errorf("left behind: %s", strings.Join(more, ", "))
}

// named says whether a complaint names what doctor found missing: by the last
// word of the check's name (bpf_rdonly_cast, G6), which people can search for.
func named(complaint string, c kernel.Check) bool {
	words := strings.Fields(c.Name)
	return strings.Contains(complaint, words[len(words)-1])
}

func TestRunDoesWhatDoctorSays(t *testing.T) {
	p := newPlace(t)
	bad := p.missing()
	before := p.left()
	mark := filepath.Join(t.TempDir(), "ran")
	status, _, complaints := p.call("run", "--", "/bin/sh", "-c", "echo >"+mark)
	t.Logf("run exits with %d: %s", status, strings.TrimSpace(complaints))
	_, err := os.Stat(mark)
	ran := err == nil
	if len(bad) == 0 {
		if status != 0 || !ran {
			t.Errorf("doctor finds nothing missing, but run exits with %d, command ran: %v", status, ran)
		}
	} else {
		if status == 0 || ran {
			t.Errorf("doctor finds something missing, but run exits with %d, command ran: %v", status, ran)
		}
		if !slices.ContainsFunc(bad, func(c kernel.Check) bool { return named(complaints, c) }) {
			t.Errorf("run names nothing of what is missing")
		}
		if n := strings.Count(strings.TrimSpace(complaints), "\n"); n > 5 {
			t.Errorf("run refuses in %d lines", n+1)
		}
	}
	p.nothingNew(before)
}

// Giving up guarantees does not make up for what cannot be done without.
func TestAcceptGivesUpOnlyWhatItNames(t *testing.T) {
	p := newPlace(t)
	bad := slices.DeleteFunc(p.missing(), func(c kernel.Check) bool { return strings.HasPrefix(c.Name, "guard G") })
	before := p.left()
	status, _, complaints := p.call("run", "--accept", "G4,G5,G6", "--", "/bin/true")
	t.Logf("run --accept G4,G5,G6 exits with %d: %s", status, strings.TrimSpace(complaints))
	if (status == 0) != (len(bad) == 0) {
		t.Errorf("run exits with %d, although without the guarantees this is missing: %v", status, bad)
	}
	p.nothingNew(before)
}
