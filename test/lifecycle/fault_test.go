// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/node"
)

// task is what a process of the fault test does until its step comes.
type task struct {
	Action      string // "start", "reload" or "unload"
	Place       node.AgentOptions
	Yaml, After string // the configuration, and that of the reload
	Step        int    // fail at the step of this number; -1: print them all
	Kill        bool   // die there instead
}

// takeSteps is the process: it ends by itself, by an error, or by SIGKILL.
func takeSteps() {
	var t task
	if err := json.Unmarshal([]byte(os.Getenv(agentEnv)), &t); err != nil {
		panic(err)
	}
	n := 0
	armed := t.Action != "reload" // there, starting is not what is tested
	t.Place.Fault = func(step string) error {
		if !armed {
			return nil
		}
		if t.Step < 0 {
			fmt.Println("step", step)
		}
		n++
		if n-1 != t.Step {
			return nil
		}
		if t.Kill {
			syscall.Kill(os.Getpid(), syscall.SIGKILL) //nolint:errcheck // it does
			select {}
		}
		return errors.New("injected at: " + step)
	}
	err := func() error {
		if t.Action == "unload" {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err := node.Unload(ctx, node.UnloadOptions{AgentOptions: t.Place})
			return err
		}
		cfg, err := config.Parse("test.yaml", []byte(t.Yaml))
		if err != nil {
			return err
		}
		a, err := node.NewAgent(cfg, t.Place)
		if err != nil {
			return err
		}
		if t.Action == "reload" {
			armed = true
			after, err := config.Parse("test.yaml", []byte(t.After))
			if err != nil {
				return err
			}
			if _, err := a.Apply(after); err != nil {
				return err
			}
		}
		return nil // and dies with everything open, as a process does
	}()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
}

// run runs the task; the answer is what it printed.
func (t task) run(tt *testing.T) (string, error) {
	tt.Helper()
	b, err := json.Marshal(t)
	if err != nil {
		tt.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+string(b))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return string(out), err
}

// otherBuild makes the pinned instance look as if another build had made it.
func otherBuild(t *testing.T, pins string, layout bool) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "agent", "about"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var about [64]byte
	if err := m.Lookup(uint32(0), &about); err != nil {
		t.Fatal(err)
	}
	about[63]++
	if layout {
		about[0]++
	}
	if err := m.Put(uint32(0), about); err != nil {
		t.Fatal(err)
	}
}

// alike: between the first and the last of several steps of one kind in a row.
func alike(steps []string, i int) bool {
	kind := func(i int) string {
		if i < 0 || i >= len(steps) {
			return ""
		}
		verb, _, _ := strings.Cut(steps[i], " ")
		return verb
	}
	return kind(i-1) == kind(i) && kind(i) == kind(i+1)
}

// TestFaults lets every action fail, and die, before each change that it makes to
// the kernel's state, with traffic on the old connections and on new ones. No byte
// is lost; the next agent finds its way from there; nothing is left in the end.
func TestFaults(t *testing.T) {
	// Otherwise, of many steps of one kind in a row, only the first and the last.
	every := os.Getenv("SHUNT_EVERY_FAULT") == "1"
	for _, c := range []struct {
		name, action string
		before       string // "nothing", "instance", "other build", "other layout"
		least        []string
	}{
		{"load", "start", "nothing", []string{"load the programs", "pin shunt_conns", "attach redirect", "attach join", "write about", "move the new instance into place", "switch to the generation"}},
		{"restart", "start", "instance", []string{"build a generation", "switch to the generation", "remove the generation before"}},
		{"upgrade", "start", "other build", []string{"load the programs", "write about", "attach redirect", "put received in its slot", "update reset", "update released", "update join"}},
		{"new layout", "start", "other layout", []string{"set the old instance aside", "load the programs", "attach join"}},
		{"reload", "reload", "instance", []string{"update join", "switch to the generation"}},
		{"unload", "unload", "instance", []string{"stop selecting", "drain", "remove about", "remove link-join", "remove shunt_socks", "remove the directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			server, client := p.peer("srv"), p.peer("cli")
			addr := server.must("listen 127.0.0.1:0 echo")
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			yaml := "apiVersion: shunt/v1\naccel: {select: [{ports: [" + port + "]}]}"
			job := task{
				Action: c.action, Place: p.options(), Yaml: yaml, Step: -1,
				After: "apiVersion: shunt/v1\naccel: {maxQueue: 65536, select: [{addresses: [127.0.0.0/8]}]}",
			}
			prepare := func() {
				if _, err := node.Unload(t.Context(), node.UnloadOptions{AgentOptions: p.options()}); err != nil {
					t.Fatalf("unload what the step before left: %v", err)
				}
				if c.before == "nothing" {
					return
				}
				p.agent("accel: {select: [{ports: [" + port + "]}]}").Close()
				if c.before != "instance" {
					otherBuild(t, p.pins, c.before == "other layout")
				}
			}
			prepare()
			out, err := job.run(t)
			if err != nil {
				t.Fatalf("without a fault: %v: %s", err, out)
			}
			var steps []string
			for line := range strings.Lines(out) {
				if s, ok := strings.CutPrefix(strings.TrimSpace(line), "step "); ok {
					steps = append(steps, s)
				}
			}
			for _, want := range c.least {
				if !slices.Contains(steps, want) {
					t.Errorf("no step %q in %q", want, steps)
				}
			}
			tried := 0
			for i, step := range steps {
				for _, kill := range []bool{false, true} {
					if !every && alike(steps, i) {
						continue
					}
					prepare()
					job.Step, job.Kill = i, kill
					old := client.must("dial %s", addr)
					client.must("exchange %s 5 2000", old)
					client.must("run %s", old)
					out, err := job.run(t)
					var exit *exec.ExitError
					if kill && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
						t.Errorf("%s: not killed: %v: %s", step, err, out)
					}
					during := client.must("dial %s", addr)
					client.must("exchange %s 5 2000", during)

					a, err := node.NewAgent(p.config("accel: {select: [{ports: ["+port+"]}]}"), p.options())
					if err != nil {
						t.Fatalf("%s, killed %v: the next agent: %v", step, kill, err)
					}
					joined := stats(t, a).Joined
					after := client.must("dial %s", addr)
					client.must("exchange %s 5 2000", after)
					if s := stats(t, a); s.Joined != joined+1 {
						t.Errorf("%s, killed %v: the next agent does not join: %+v", step, kill, s)
					}
					a.Close()
					if rounds := client.must("stop %s", old); rounds == "0" {
						t.Errorf("%s, killed %v: the old connection stood still", step, kill)
					}
					for _, id := range []string{old, during, after} {
						client.must("exchange %s 2 2000", id)
					}
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					if _, err := node.Unload(ctx, node.UnloadOptions{AgentOptions: p.options()}); err != nil {
						t.Errorf("%s, killed %v: unload: %v", step, kill, err)
					}
					cancel()
					if _, err := os.Stat(p.pins); err == nil {
						t.Errorf("%s, killed %v: something is left", step, kill)
					}
					for _, id := range []string{old, during, after} {
						client.must("exchange %s 2 2000", id)
						client.must("close %s", id)
					}
					tried++
				}
			}
			t.Logf("%d times in %d steps: %q", tried, len(steps), steps)
		})
	}
}
